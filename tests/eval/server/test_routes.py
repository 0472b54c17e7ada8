"""The server, compared with its OpenAPI description: schemathesis sends valid and invalid requests."""

import pytest


def test_responses_to_any_request_follow_the_openapi_description(server):
    schemathesis = pytest.importorskip("schemathesis", reason="the fuzzer is not installed")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import load_all_checks, positive_data_acceptance

    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses = set()
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:
            # The schema has no rules for combinations of fields (top_k with top_p), so the server may refuse
            # requests that the schema allows.
            @settings(
                max_examples=20 if operation.body else 1,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def fuzz(case):
                statuses.add(
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
    } <= statuses
    assert server.engine.running == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/api", 405),
    ],
)
def test_an_unknown_path_or_method_is_refused_in_the_form_of_the_api(server, method, path, status):
    reply = server.client.request(method, path)
    assert reply.status_code == status
    assert ("allow" in reply.headers) == (status == 405)
    if path == "/api":
        assert "does not take this method" in reply.json()
    else:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, status)
