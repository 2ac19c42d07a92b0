"""What schemathesis is to look at besides its own checks."""

import schemathesis


@schemathesis.check
def a_valid_order_is_refused_for_its_key_alone(ctx, response, case):
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if not positive or response.status_code != 422:
        return
    # For JSON Schema 3.0 is an integer, which the API refuses; there is no keyword that would say so.
    if any(isinstance(case.body.get(field), float) for field in ("user_id", "product_id", "quantity")):
        return
    assert response.json()["type"] == "/problems/idempotency-key-reused"


@schemathesis.check
def every_refusal_is_a_problem(ctx, response, case):
    # Whoever reads /readyz reads it at a terminal, and what is no HTTP never becomes a request.
    if response.status_code < 400 or case.path == "/readyz" or response.request.method == "HEAD":
        return
    problem = response.json()
    assert problem["status"] == response.status_code
    # Methods that a path does not have are tried too, and are described for none.
    others = {"x-problem-types": ["/problems/method-not-allowed"]}
    described = case.operation.definition.raw["responses"].get(str(response.status_code), others)
    assert problem["type"] in described["x-problem-types"], problem["type"]
