"""What operators watch: logs and metrics. Never billed from; that is the ledger."""
