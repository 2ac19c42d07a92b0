"""What changes behind nginx: the prefix of paths, tags of compressed answers, HTTP/1.0, and buffers before a stream."""

import sys
import time

import requests

BASE = sys.argv[1]
ORDER = {"user_id": 1, "product_id": 2, "quantity": 3}
origin = BASE.rsplit("/", 1)[0]

with requests.Session() as session:
    for _ in range(300):
        made = session.post(f"{BASE}/orders", json=ORDER)
        assert made.status_code == 201, made.text
    assert made.headers["location"].startswith("/shop/orders/"), made.headers
    order = origin + made.headers["location"]
    read = session.get(order, headers={"accept-encoding": "gzip"})
    assert read.status_code == 200 and read.headers.get("content-encoding") == "gzip", read.headers
    tag = read.headers["etag"]
    assert tag.startswith("W/"), tag
    assert session.get(order, headers={"if-none-match": tag}).status_code == 304
    changed = session.post(f"{order}/cancel", headers={"if-match": tag})
    assert changed.status_code == 200, changed.text
    page = session.get(f"{BASE}/orders?limit=2")
    following = session.get(origin + page.links["next"]["url"])
    assert following.status_code == 200 and len(following.json()["orders"]) == 2, following.text
    missing = session.get(f"{BASE}/orders/999999").json()
    assert missing["type"] == "/shop/problems/order-not-found", missing
    assert session.get(origin + missing["type"]).json()["status"] == 404
    servers = session.get(f"{BASE}/openapi.json").json()["servers"]
    assert servers[0]["url"].endswith("/shop"), servers
    with session.get(f"{BASE}/orders/events", stream=True) as stream:
        lines = stream.iter_lines()
        assert next(lines) is not None
        sent = time.monotonic()
        assert requests.post(f"{BASE}/orders", json=ORDER).status_code == 201
        assert any(line.startswith(b"data: ") for line in lines)
        assert time.monotonic() - sent < 2, "the proxy has kept the event back"
print("well")
