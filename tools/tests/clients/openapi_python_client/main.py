"""Talks to the API by a client of openapi-python-client."""

import sys

from outrider_client import Client
from outrider_client.api.orders import cancel_order, create_order, create_orders, read_order, read_timeline
from outrider_client.models import NewOrder, Order, Problem

url, newer = sys.argv[1:]

# guide: from here
client = Client(base_url=url)
for quantity in (3, 0):
    answer = create_order.sync_detailed(client=client, body=NewOrder(user_id=7, product_id=42, quantity=quantity))
    match answer.parsed:
        case Order() as order:
            deleted = order.deleted_at or "never"
            print(f"{answer.status_code} {order.status} version {order.version}, deleted: {deleted}")
            accepted = order.id
        case Problem() as problem:
            fields = " ".join(error.field for error in problem.errors or [])
            print(f"{problem.status} {problem.type_}: {problem.detail} ({fields})")
# guide: to here

cancel_order.sync(accepted, client=client)
problem = cancel_order.sync(accepted, client=client)
assert isinstance(problem, Problem), problem
print(f"{problem.status} {problem.type_}: {problem.detail}")

for result in create_orders.sync(
    client=client,
    body=[NewOrder(user_id=7, product_id=42, quantity=1), NewOrder(user_id=7, product_id=42, quantity=0)],
).results:
    print(f"batch: {result.status} {result.order.status if result.order else result.problem.type_}")

for change in read_timeline.sync(accepted, client=client).changes:
    offset = "none" if change.published.offset is None else change.published.offset
    print(f"timeline: {change.type_} {change.status}, offset: {offset}")

print(f"newer: {read_order.sync(1, client=Client(base_url=newer)).status}")
