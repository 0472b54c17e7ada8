"""The OpenAPI description against the server: schemathesis sends valid and invalid requests."""

import pytest


def test_the_server_keeps_to_its_own_description_whatever_is_sent(server):
    schemathesis = pytest.importorskip("schemathesis", reason="the fuzzer is not installed")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import load_all_checks, positive_data_acceptance

    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = set()
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:
            # rules across fields (top_k or top_p) are not in the schema, so that what it allows may still be
            # refused
            @settings(
                max_examples=20 if operation.body else 1,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def fuzz(case):
                seen.add(
                    (
                        case.operation.label,
                        case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code,
                    )
                )

            if operation.body or mode == schemathesis.GenerationMode.POSITIVE:
                fuzz()
    assert {
        ("PUT /api", 400),
        ("POST /v1/completions", 400),
        ("POST /v1/completions", 200),
        ("GET /health", 200),
    } <= seen
    assert server.engine.running == 0
