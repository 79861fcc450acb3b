"""Chat templates are programs that came with a model: the text is transformers' own, and none runs on or grows for ever."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from maasdam.tasks.chat_template import ChatTemplate, TooMuch

HI: tuple[dict[str, Any], ...] = ({"role": "user", "content": "hi"},)
GROWS = "{% set ns = namespace(a=START) %}{% for i in range(60) %}{% set ns.a = STEP %}{% endfor %}{{ ns.a }}"


def growing(start: str, step: str) -> str:
    """`a` grows sixty times."""
    return GROWS.replace("START", start).replace("STEP", step)


ENDLESS = {
    "nested loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}x",
    "a loop that takes nothing": "{% for i in range(90000) %}{% for j in range(90000) if false %}{% endfor %}{% endfor %}",
    "a filter in a loop": "{% for i in range(90000) %}{% set x = range(90000) | map('string') | list %}{% endfor %}",
    "sums in a loop": "{% for i in range(90000) %}{% set x = range(90000) | sum %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "blocks": "{% block a %}{% endblock %}{% for i in range(90000) %}{{ self.a() }}{{ self.a() }}{% endfor %}",
    "looking through a text": "{% set b = 'a' * 8000000 %}{% for i in range(90000) %}{% if 'b' in b %}x{% endif %}{% endfor %}",
    "cutting a text": "{% set b = 'a' * 8000000 %}{% for i in range(90000) %}{% set c = b[1:] %}{% endfor %}",
    "a method in a loop": "{% set b = 'a' * 8000000 %}{% for i in range(90000) %}{% set c = b.upper() %}{% endfor %}",
}
HUGE = {
    "times": "{{ 'a' * 10000000000 }}",
    "times a list": "{{ ([0] * 10000000000) | length }}",
    "power": "{{ 2 ** 100000000000 }}",
    "squares": growing("3", "ns.a * ns.a"),
    "joined": growing("'a'", "ns.a ~ ns.a"),
    "added": growing("'a'", "ns.a + ns.a"),
    "added lists": growing("[1]", "ns.a + ns.a"),
    "lists that share": growing("[1]", "[ns.a, ns.a]"),
    "tuples as keys": growing("(1,)", "(ns.a, ns.a)") + "{{ {ns.a: 1} }}",
    "namespaces that share": growing("1", "namespace(a=[ns.a, ns.a])"),
    "written again and again": "{% set x %}{% for i in range(90000) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}{{ x }}",
    "the template's own words": "{% for i in range(90000) %}" + "x" * 5000 + "{% endfor %}",
    "replace": "{{ ('a' * 100000).replace('', 'x' * 100000) }}",
    "replace, filter": "{{ ('a' * 100000) | replace('a', 'x' * 100000) }}",
    "join": "{{ ('x' * 1000000).join(['a'] * 100000) }}",
    "join, filter": "{{ range(90000) | join('x' * 1000000) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format, within": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "format, many": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent, star": "{{ '%*d' % (1000000000, 1) }}",
    "percent, filter": "{{ '%.1000000000f' | format(1.0) }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "center, filter": "{{ 'a' | center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "batch": "{{ [1] | batch(10000000000, 0) | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "round": "{{ 1 | round(1000000000) }}",
    "tojson": "{{ {'a': 1} | tojson(indent=1000000000) }}",
    "date": "{{ strftime_now('%1000000000Y') }}",
}
ABSENT = {
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "translate": "{{ 'a'.translate({97: 'b' * 1000}) }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "urlize": "{{ 'a' | urlize }}",
    "underscores": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
}


@pytest.mark.parametrize("template", [*ENDLESS.values(), *HUGE.values()], ids=[*ENDLESS, *HUGE])
def test_a_template_that_runs_on_or_grows_is_stopped(template: str) -> None:
    with pytest.raises(TooMuch):
        ChatTemplate(template).render(HI)


@pytest.mark.parametrize("template", ABSENT.values(), ids=ABSENT)
def test_what_cant_be_bounded_is_not_there(template: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate(template).render(HI)


PLAIN = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + eos_token }}{% endfor %}{{ bos_token }}"
STRICT = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}
{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}
{{ m.content.strip() | upper }}{% endfor %}"""
THINKING = """{%- set ns = namespace(last=messages | length - 1, found=false) %}
{%- for m in messages[::-1] %}
    {%- if not ns.found and m.role == "user" and m.content is string and not m.content.startswith('<t>') %}
        {%- set ns.found = true %}{%- set ns.last = (messages | length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
    {%- set said = m.content | trim %}
    {%- if m.role == 'assistant' and '</think>' in said %}{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}
    {{- m.role ~ ':' ~ said ~ (' (last)' if loop.index0 == ns.last else '') }}
    {% if loop.previtem is defined and loop.previtem.role == m.role %}{{ 'again' }}{% endif %}
{% endfor %}
{% generation %}said{% endgeneration %}{% if add_generation_prompt %}assistant:{% endif %}"""
EVERYTHING = """{% macro show(m, n=2) %}{{ m.role | title | center(n + 8) }}{{ m.content | replace('a', 'bb') | indent(n) }}
{% endmacro %}
{% for m in messages if m.role != 'system' %}{% if loop.last %}{% break %}{% endif %}{{ show(m) }}{% endfor %}
{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | tojson(indent=2) }}{{ '%s-%05.1f%%' % ('x', 2.5) }}{{ '{:>6}|{a}'.format(3, a=4) }}{{ [1, 2] * 2 + [3] }}
{{ 2 ** 10 }}{{ dict(b=1, a=2) | dictsort }}{{ messages | batch(2) | list | length }}{{ [3, 1] | sort }}{{ 'abc'[::-1] }}
{{ 3.14159 | round(2) }}
{% set x %}kept {{ 1 }}{% endset %}{{ x }}{% filter lower %}ABC{% endfilter %}{{ messages[0].get('name', 'nobody') }}
{{ (1, 'a') }}{{ tools is none }}{{ missing | default('none') }}{{ messages | groupby('role') | list | length }}
{{ {'k': [1, {'a': none}]} }}"""
CHATS = (
    HI,
    (
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": "a line\n second\n"},
        {"role": "assistant", "content": "<think>x</think>\n\nyes", "name": None},
        {"role": "user", "content": "more € 🐈"},
    ),
    ({"role": "user", "content": "a", "name": "joe"}, {"role": "user", "content": ""}),
)


@pytest.mark.parametrize("template", [PLAIN, STRICT, THINKING, EVERYTHING], ids=["plain", "strict", "thinking", "everything"])
@pytest.mark.parametrize("chat", CHATS, ids=["one", "many", "named"])
def test_the_text_is_transformers_own(template: str, chat: tuple[dict[str, Any], ...]) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    try:
        want = tokenizer.apply_chat_template(list(chat), chat_template=template, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        with pytest.raises(jinja2.TemplateError, match=str(error)):
            ChatTemplate(template).render(chat, **tokenizer.special_tokens_map)
    else:
        assert ChatTemplate(template).render(chat, **tokenizer.special_tokens_map) == want


def test_a_long_chat_is_rendered() -> None:
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(3000)]
    assert ChatTemplate(THINKING).render(chat).count("word") == 3000 * 200
