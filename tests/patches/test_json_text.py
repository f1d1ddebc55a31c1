import json

import pytest

from dowser_pl.patches.json_text import edit, with_dtype, with_total_size, with_value

LAYOUTS = {
    "indented": '{\n  "a": 1,\n  "eos_token_id": 2,\n  "z": [1, {"eos_token_id": 9}]\n}\n',
    "tight": '{"a":1,"eos_token_id":2,"z":[1,{"eos_token_id":9}]}',
    "last": '{\r\n\t"z": "}\\" \\"eos_token_id\\": 7,",\r\n\t"eos_token_id" : [ 2,\r\n\t\t3 ]\r\n}',
    "null": '{ "eos_token_id": null }',
    "missing": '{\n    "a": "ü",\n    "z": {"eos_token_id": 9}\n}\n',
    "missing, tight": '{"a":1e-05,"b":0.00001}',
    "empty": "{}",
    "empty, with a line": "{\n}\n",
    "twice": '{"eos_token_id": 1, "eos_token_id": 2}',
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_value_is_replaced_or_added_and_nothing_else(layout):
    text = LAYOUTS[layout]
    changed = with_value(text, "eos_token_id", [2, 7])
    before, after = json.loads(text), json.loads(changed)
    assert after == before | {"eos_token_id": [2, 7]}
    assert list(after) == list(before | {"eos_token_id": 0})
    kept, _, rest = changed.partition("[2, 7]")
    if "eos_token_id" not in before:
        kept = kept.rpartition('"eos_token_id"')[0].rstrip().rstrip(",")
    assert text.startswith(kept.rstrip()) and text.endswith(rest)


def test_an_added_value_stands_on_a_line_of_its_own_where_the_others_do():
    assert with_value('{\n  "a": 1\n}\n', "b", 2) == '{\n  "a": 1,\n  "b": 2\n}\n'
    assert with_value('{"a": 1}', "b", 2) == '{"a": 1, "b": 2}'
    assert with_value("{}", "b", 2) == '{"b": 2}'


def test_a_value_of_a_part():
    text = '{"a": {"size": 1}, "image_processor": {\n  "size": {"x": 1},\n  "z": 2\n}, "size": 3}'
    assert with_value(text, "size", 5, "image_processor") == text.replace('{"x": 1}', "5")
    added = with_value(text, "new", 5, "image_processor")
    assert added == text.replace('"z": 2\n', '"z": 2,\n  "new": 5\n')


def test_every_floating_dtype_is_replaced_and_nothing_that_looks_like_one():
    text = (
        '{"torch_dtype": "float16", "note": "\\"dtype\\": \\"float16\\"", "text_config": {"dtype" : "bfloat16"},\n'
        ' "vision_config": {"torch_dtype": null}, "compute_dtype": "float16", "dtype": "int8", "x": ["dtype"]}'
    )
    changed = with_dtype(text, "float32")
    assert changed == text.replace('"torch_dtype": "float16"', '"torch_dtype": "float32"').replace(
        '"dtype" : "bfloat16"', '"dtype" : "float32"'
    )


def test_a_size_is_replaced():
    text = '{"metadata": {"total_parameters": 3, "total_size": 1.2e3}, "weight_map": {"total_size": "a.safetensors"}}'
    assert with_total_size(text, 5) == text.replace("1.2e3", "5")


def test_a_file_keeps_its_line_ends_and_is_not_written_for_nothing(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{\r\n "dtype": "float16",\r\n "n": "\xc3\xbc"\r\n}')
    edit(path, lambda text: with_dtype(text, "float32"))
    assert path.read_bytes() == b'{\r\n "dtype": "float32",\r\n "n": "\xc3\xbc"\r\n}'
    path.chmod(0o400)
    stamp = path.stat().st_mtime_ns
    edit(path, lambda text: text)
    assert path.stat().st_mtime_ns == stamp
