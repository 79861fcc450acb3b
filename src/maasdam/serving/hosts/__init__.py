"""Engine hosts: replicas in processes of their own, behind the same protocol as those in this one."""
