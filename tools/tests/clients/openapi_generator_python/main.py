"""Talks to the API by a client of openapi-generator for Python."""

import sys

from openapi_client import ApiClient, ApiException, Configuration, NewOrder, OrdersApi, Problem

url, newer = sys.argv[1:]


def piece(quantity):
    # The client itself refuses what the description does: here the API is to do that.
    return NewOrder.model_construct(user_id=7, product_id=42, quantity=quantity)


orders = OrdersApi(ApiClient(Configuration(host=url)))
for quantity in (3, 0):
    try:
        order = orders.create_order(piece(quantity))
        print(f"201 {order.status} version {order.version}, deleted: {order.deleted_at or 'never'}")
        accepted = order.id
    except ApiException as error:
        problem = error.data
        assert isinstance(problem, Problem), error
        fields = " ".join(wrong.var_field for wrong in problem.errors or [])
        print(f"{problem.status} {problem.type}: {problem.detail} ({fields})")

orders.cancel_order(accepted)
try:
    orders.cancel_order(accepted)
except ApiException as error:
    assert isinstance(error.data, Problem), error
    print(f"{error.data.status} {error.data.type}: {error.data.detail}")

for result in orders.create_orders([piece(1), piece(0)]).results:
    print(f"batch: {result.status} {result.order.status if result.order else result.problem.type}")

for change in orders.read_timeline(accepted).changes:
    offset = "none" if change.published.offset is None else change.published.offset
    print(f"timeline: {change.type} {change.status}, offset: {offset}")

print(f"newer: {OrdersApi(ApiClient(Configuration(host=newer))).read_order(1).status}")
