"""The cases of the hostile corpus other than graphs: fields, bytes, tensors, transport."""

from __future__ import annotations

import importlib
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases_cache
import cases_codegen
import cases_resources
import cases_serialized
import cases_structure
import pytest
from harness import metrics, total
from sending import unsayable
from watching import Watched

_CASES = json.loads(Path(__file__).with_name("corpus.json").read_text("utf-8"))["cases"]
_OTHERS = {case["id"]: case for case in _CASES if "graph" not in case["payload"]}

# Cases about more than one message: the test that plays each of them.
PLAYED = {
    "serial-014": "hostile.test_signatures:test_changed_bytes_are_not_opened",
    "resource-031": "server.test_streams:TestBlobs.test_idle_uploads_delay_no_other_call",
    "resource-034": "hostile.test_transport:test_a_call_without_a_deadline_gets_the_server_s",
    "resource-035": "hostile.test_transport:test_uploads_that_are_cancelled_leave_nothing",
    "resource-036": "server.test_streams:TestBlobs.test_a_bad_upload_is_refused_and_leaves_nothing",
    "cache-008": "server.test_compile:test_damage_on_disk_is_a_miss_and_is_repaired",
    "cache-015": "hostile.test_tenants:test_another_tenant_s_module_is_not_there",
    "cache-016": "hostile.test_tenants:test_another_tenant_s_values_are_missing",
    "cache-017": "hostile.test_tenants:"
    "test_another_tenant_s_graph_is_unknown_and_compiling_it_is_a_miss",
    "cache-020": "hostile.test_identity:test_every_method_authenticates_before_it_reads",
    "cache-021": "hostile.test_identity:test_a_certificate_of_another_service_is_refused",
    "cache-022": "hostile.test_identity:"
    "test_tokens_come_and_go_without_a_restart_and_are_written_nowhere",
    "cache-023": "hostile.test_worker_answers:test_a_lie_is_an_internal_error_and_is_not_kept",
    "cache-024": "hostile.test_worker_answers:test_a_lie_is_an_internal_error_and_is_not_kept",
    "cache-025": "hostile.test_signatures:"
    "test_unsigned_bytes_are_not_opened_but_graph_data_needs_no_signature",
    "cache-026": "hostile.test_signatures:"
    "test_a_signature_about_something_else_or_another_time_is_refused",
}


@pytest.fixture(scope="module")
def watched(launch_for_file, tmp_path_factory):
    server = launch_for_file("--workers", "1", "--job-timeout", "30")
    return Watched.start(server, tmp_path_factory.mktemp("marker"))


HANDLERS: dict[str, Callable[[Watched, Any], None]] = {
    **dict.fromkeys(cases_codegen.FOLDED, cases_codegen.dangerous_to_fold),
    **dict.fromkeys(
        ["codegen-039", "codegen-040", "codegen-041", "codegen-050", "codegen-051",
         "codegen-052", "codegen-055", "codegen-056", "codegen-057"], unsayable,
    ),
    "codegen-042": cases_codegen.hostile_target,
    "codegen-044": cases_codegen.hostile_argument_names,
    "codegen-045": cases_codegen.hostile_tree_spec,
    "codegen-047": cases_codegen.hostile_tree_spec,
    "codegen-060": cases_codegen.hostile_child_name,
    "codegen-061": cases_codegen.hostile_device,
    "target-078": cases_structure.training_state,
    **dict.fromkeys(
        ["serial-003", "serial-007", "serial-008", "serial-009", "serial-010", "serial-012",
         "serial-015", "serial-016", "serial-017"], cases_serialized.serialized_body,
    ),
    "serial-004": cases_serialized.tensor_that_is_a_pickle,
    "serial-018": cases_serialized.tensor_of_many_dimensions,
    "serial-019": cases_serialized.tensor_of_a_terabyte,
    "serial-020": cases_serialized.tensor_of_other_size,
    "serial-022": cases_serialized.tensor_with_negative_strides,
    "serial-023": cases_serialized.tensor_of_wild_bools,
    "serial-025": cases_serialized.module_by_path,
    "serial-026": cases_serialized.module_with_odd_state,
    "serial-029": cases_serialized.module_of_great_size,
    "serial-030": cases_serialized.module_of_other_shape,
    "structure-014": cases_structure.paths_in_each_others_way,
    "structure-015": cases_structure.paths_into_a_modules_insides,
    "structure-016": cases_structure.lying_metadata,
    "structure-017": cases_structure.argument_without_a_kind,
    "structure-019": cases_structure.mutation_is_kept,
    "resource-002": cases_resources.groups,
    "resource-005": cases_resources.doubled_field,
    "resource-008": cases_resources.deep_nesting,
    "resource-009": cases_resources.deep_nesting,
    "resource-010": cases_resources.names_that_count,
    "resource-011": cases_resources.string_bomb,
    "resource-012": cases_resources.long_path,
    "resource-015": cases_serialized.tensor_of_many_dimensions,
    "resource-021": cases_resources.power_bomb,
    "resource-023": cases_resources.expression_as_text,
    "resource-024": cases_resources.expression_as_text,
    **dict.fromkeys(
        ["resource-026", "resource-027", "resource-028", "resource-029"], cases_resources.compressed_body
    ),
    "resource-030": cases_resources.gzip_bomb,
    "resource-039": cases_resources.rewrite_that_feeds_itself,
    "resource-040": cases_resources.many_passes,
    "resource-041": cases_resources.odd_pass,
    "resource-044": cases_resources.new_labels,
    "resource-045": cases_resources.great_metadata,
    "cache-002": cases_cache.no_put,
    "cache-004": cases_cache.odd_ids,
    "cache-005": cases_cache.odd_ids,
    "cache-006": cases_cache.odd_ids,
    "cache-009": cases_cache.distinct_literals,
    "cache-012": cases_cache.distinct_targets,
    "cache-013": cases_cache.distinct_strings,
    "cache-014": cases_cache.whole_key,
    "cache-027": cases_cache.no_reflection,
}  # fmt: skip


@pytest.mark.parametrize("case_id", HANDLERS)
def test_request(watched, case_id):
    HANDLERS[case_id](watched, _OTHERS[case_id])
    watched.check_unharmed()


@pytest.mark.parametrize("case_id", PLAYED)
def test_cases_that_have_a_test_of_their_own(case_id):
    module, _, name = PLAYED[case_id].partition(":")
    assert callable(operator.attrgetter(name)(importlib.import_module(module)))


def test_every_case_is_sent():
    assert set(_OTHERS) == set(HANDLERS) | set(PLAYED)
    assert not set(HANDLERS) & set(PLAYED)


def test_long_names_cannot_make_a_long_source(watched):
    cases_resources.long_names(watched, None)
    watched.check_unharmed()


def test_no_request_hurt_the_server(watched):
    samples = metrics(watched.server.metrics_url)
    assert total(samples, "lazyfx_requests_total", code="INTERNAL") == 0
    assert total(samples, "lazyfx_requests_total", code="UNKNOWN") == 0
    assert total(samples, "lazyfx_worker_restarts_total") == 0
