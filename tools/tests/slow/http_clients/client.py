"""requests, httpx and the standard library's client, which can speak HTTP/1.0."""

import http.client
import sys
import urllib.parse

import httpx
import requests

BASE = sys.argv[1]
ORDER = {"user_id": 1, "product_id": 2, "quantity": 3}

with requests.Session() as session:
    for _ in range(300):
        answer = session.post(f"{BASE}/orders", json=ORDER)
        assert answer.status_code == 201, answer.text
    refused = session.post(f"{BASE}/orders", json={"user_id": 0})
    assert refused.status_code == 422 and refused.json()["errors"], refused.text
    # A body of unknown length is sent in chunks.
    chunked = session.post(
        f"{BASE}/orders",
        data=iter([b'{"user_id": 1, ', b'"product_id": 2, "quantity": 3}']),
        headers={"content-type": "application/json"},
    )
    assert chunked.status_code == 201, chunked.text

with httpx.Client() as client:
    for _ in range(300):
        answer = client.post(f"{BASE}/orders", json=ORDER)
        assert answer.status_code == 201, answer.text
    with client.stream("GET", f"{BASE}/orders/1/events") as stream:
        assert any(line.startswith("data: ") for line in stream.iter_lines())


class Old(http.client.HTTPConnection):
    _http_vsn = 10
    _http_vsn_str = "HTTP/1.0"


parts = urllib.parse.urlsplit(BASE)
for path in ["/orders/1", "/orders", "/orders/999999"]:
    old = Old(parts.hostname, parts.port)
    old.request("GET", parts.path + path)
    answer = old.getresponse()
    body = answer.read()
    assert answer.getheader("transfer-encoding") is None and body.startswith(b"{"), (path, body)
print("well")
