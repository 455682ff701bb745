"""Hostile input, made by strategies of our own: values, keys, headers, attributes, trace headers, times and HTTP bodies."""

from __future__ import annotations

import json
import pickle
from typing import Any

from hypothesis import strategies as st


class Bomb:
    """Were its pickle ever loaded, an exception would say so."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle from outside was loaded')",)


#: Texts that break what was not written with them in mind.
NAUGHTY = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "line\nINFO  all is well",
    "line\r\nx-engine-reason: none",
    "\u202eright to left\u202c",
    "\u2066isolate\u2069",
    "\u2028\u2029",
    "\ufeffmark",
    "\ufffe\uffff",
    "é",
    "e\u0301" * 50,
    "\U0001f469\u200d\U0001f52c",
    "Ω≈ç√∫˜µ≤≥÷",
    "null",
    "None",
    "NaN",
    "-1",
    "1e999",
    "0x10",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "%s%n%d",
    "../../etc/passwd",
    "__import__('os').system('false')",
    "a" * 10_000,
    "/",
    "orders/0/0",
]

#: As the JSON test suites have them: what must be refused, what may be, and what is legal and seldom seen.
ODD_JSON = [
    b"",
    b" ",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b"{",
    b"}",
    b"[",
    b"[1,]",
    b"{,}",
    b'{"a" 1}',
    b'{"a":1,}',
    b'{"a":1}}',
    b'{"a":1}#',
    b"{'a':1}",
    b'{"a":1,"a":2}',
    b'{"number":1,"number":"x","number":2}',
    b'{"number":NaN}',
    b'{"number":Infinity}',
    b'{"number":-Infinity}',
    b'{"number":1e400}',
    b'{"number":-1e400}',
    b'{"number":1e-400}',
    b'{"number":' + b"9" * 5_000 + b"}",
    b'{"number":0.' + b"1" * 5_000 + b"}",
    b'{"number":01}',
    b'{"number":+1}',
    b'{"number":.5}',
    b'{"number":18446744073709551616}',
    b'{"number":-9223372036854775809}',
    b'{"text":"\\ud800"}',
    b'{"text":"\\udc00\\ud800"}',
    b'{"text":"\\u0000"}',
    b'{"text":"\xed\xa0\x80"}',
    b'{"text":"\xff"}',
    b'{"text":"\n"}',
    b'{"text":"\\x41"}',
    b'{"at":"0000-00-00T00:00:00Z"}',
    b'{"at":"9999-12-31T23:59:59+23:59"}',
    b'{"at":"0001-01-01T00:00:00+14:00"}',
    b'{"at":1e300}',
    b'{"at":-1e18}',
    b'{"span":1e300}',
    b'{"span":"P99999999999999D"}',
    b'{"amount":"1e999999999"}',
    b'{"amount":"sNaN"}',
    b'{"blob":"!"}',
    b'{"blob":"AAA"}',
    b'{"\\u0000":1}',
    b'{"__class__":"os.system"}',
    b"true",
    b"null",
    b'"text"',
    b"1",
    b"[" * 2_000,
    b"[" * 2_000 + b"]" * 2_000,
    b"[" * 900 + b"]" * 900,
    b'{"any":' + b"[" * 990 + b"]" * 990 + b"}",
    b'{"any":' + b"[" * 400 + b"]" * 400 + b"}",
    b'{"any":' * 900 + b"1" + b"}" * 900,
    pickle.dumps(Bomb()),
    pickle.dumps({"number": 1}, protocol=0),
    b"cos\nsystem\n(S'false'\ntR.",
]

TRACES = [
    b"",
    b"00",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
    b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
    b"00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
    b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
    b"00-" + b"g" * 32 + b"-b7ad6b7169203331-01",
    "00-٠af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".encode(),
    b"k=v," * 2_500,
    b"\xff" * 100,
]

texts = st.one_of(st.sampled_from(NAUGHTY), st.text(max_size=40))
odd_bytes = st.one_of(st.binary(max_size=60), texts.map(lambda text: text.encode(errors="surrogatepass")))

documents: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
fields = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("number", "text", "at", "span", "amount", "blob", "any", "kind", "more"), documents),
)


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


@st.composite
def _broken(draw: st.DrawFn) -> bytes:
    """A good document with a piece cut out, doubled, or replaced."""
    text = _encoded(draw(fields))
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, len(text)))
    return text[:begin] + draw(st.one_of(st.just(b""), st.just(text[begin:end] * 2), st.binary(max_size=4))) + text[end:]


values: st.SearchStrategy[bytes | None] = st.one_of(
    st.none(), st.sampled_from(ODD_JSON), documents.map(_encoded), fields.map(_encoded), _broken(), st.binary(max_size=60)
)
keys = st.one_of(st.none(), odd_bytes)

media_types = st.one_of(
    st.sampled_from(
        [
            "application/json",
            "application/cloudevents+json",
            "application/cloudevents+json; charset=utf-8",
            "application/cloudevents-batch+json",
            "application/cloudevents+xml",
            "application/x-python-pickle",
            "text/plain",
            "text/plain; charset=utf-7",
            "APPLICATION/JSON",
            "application/vnd.x+json",
            ";",
            "/",
        ]
    ),
    texts,
)
#: What time, specversion and the others may be.
attribute_texts = st.one_of(
    st.sampled_from(["1.0", "2026-01-02T03:04:05Z", "2026-13-02T03:04:05Z", "9999-12-31T23:59:59-23:59", "test", "/x"]), texts
)
attribute_names = st.one_of(
    st.sampled_from(
        ["id", "source", "type", "specversion", "time", "subject", "dataschema", "datacontenttype", "partitionkey"]
    ),
    st.sampled_from(["traceparent", "tracestate", "ID", "Source", "data", "", "with-dash", "é", "a" * 65]),
    texts,
)
trace_headers = st.tuples(
    st.sampled_from(["traceparent", "tracestate", "TraceParent"]), st.one_of(st.sampled_from(TRACES), odd_bytes)
)
_header = st.one_of(
    st.tuples(st.builds("ce_{}".format, attribute_names), st.one_of(attribute_texts.map(_utf8), odd_bytes)),
    st.tuples(st.sampled_from(["content-type", "Content-Type"]), st.one_of(media_types.map(_utf8), odd_bytes)),
    trace_headers,
    st.tuples(texts, odd_bytes),
    st.tuples(st.sampled_from(["x-engine-reason", "x-engine-origin"]), odd_bytes),
)
_good = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/shop"), ("ce_type", b"test")]


@st.composite
def headers(draw: st.DrawFn) -> tuple[tuple[str, bytes], ...]:
    """Headers: none, a good event's with things done to them, or anything."""
    found = list(draw(st.sampled_from([[], _good, _good[1:], _good * 2])))
    found += draw(st.lists(_header, max_size=5))
    return tuple(draw(st.permutations(found)) if draw(st.booleans()) else found)


structured: st.SearchStrategy[bytes] = st.one_of(
    st.dictionaries(attribute_names, st.one_of(documents, attribute_texts), max_size=6).map(_encoded),
    st.fixed_dictionaries(
        {"specversion": st.just("1.0"), "id": attribute_texts, "source": attribute_texts, "type": attribute_texts},
        optional={
            "time": documents,
            "datacontenttype": st.one_of(media_types, documents),
            "data": documents,
            "data_base64": st.one_of(documents, st.just("AAAA")),
            "traceparent": documents,
            "x": documents,
        },
    ).map(_encoded),
    st.sampled_from(ODD_JSON),
)
timestamps = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([-1, 0, -62_135_596_800_001, 253_402_300_800_000, 2**63 - 1, -(2**63)])
)
