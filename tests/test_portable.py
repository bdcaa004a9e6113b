"""Rules in files, for all frameworks, and saved plans."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import projgrad as pg
from projgrad.portable import FRAMEWORKS
from projgrad.rules import Parameter, Use, resolve
from tests.cases import all_cases


def toml(value):
    """A value as TOML, on one line."""
    if value is None:
        return '"none"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def written(path, rules):
    """A file of these rules, in the format that its name ends in."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"rules": rules}))
    else:
        path.write_text("".join("[[rules]]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in r.items()) for r in rules))
    return path


def loaded(tmp_path, *rules, framework=None, ending=".json"):
    return pg.load_rules(written(tmp_path / f"rules{ending}", list(rules)), framework)


def plan_of(rules, shapes, incoming=(0,), dtype="float32"):
    axes = {name: incoming if len(shape) > 1 else "no" for name, shape in shapes.items()}
    return resolve(rules, [Parameter((Use(name, axes[name]),), shape, dtype) for name, shape in shapes.items()])


@pytest.mark.parametrize("ending", [".toml", ".json"])
def test_every_set_comes_back_from_a_file(tmp_path, ending):
    sets = [case.constraint for case in all_cases()]
    exported = {
        name
        for name, thing in vars(pg).items()
        if isinstance(thing, type)
        and issubclass(thing, pg.Constraint)
        and thing not in (pg.Constraint, pg.Intersection)
    }
    plain = pg.MaxNorm(pg.Schedule({0: 3.0, 1000: 1.0}), axis=None, rate=0.5)
    sets += [pg.MaxNorm(2.0), pg.UnitNorm(axis=(0, 2)), pg.MinMaxNorm(0.5, 2.0, rate=0.5, axis=-1), pg.NonNeg()]
    sets += [pg.NonPos(), pg.Box(-float("inf"), [[1.0], [2.0]]), pg.Mask([[1, 0], [0, 1]]), pg.Extensive(-2.0)]
    sets += [
        pg.Quantized(0.25),
        pg.Quantized([-1.0, 0.0, 2.0]),
        pg.StructuringElement("diamond"),
        pg.LInfBall(2.0),
    ]
    sets += [plain, pg.Slices([plain, None]), pg.Slices({(0, 1): pg.Box(0, 0), (1, None): pg.NonNeg()}, along=1)]
    assert exported <= {type(c).__name__ for c in sets}
    rules = [{"names": f"p{i}", "constraint": c.to_dict()} for i, c in enumerate(sets)]
    found = loaded(tmp_path, *rules, ending=ending)
    assert list(found.values()) == sets
    assert len(found) == len(sets)


@pytest.mark.parametrize("ending", [".toml", ".json"])
def test_options_order_and_names_per_framework(tmp_path, ending):
    ball = {"type": "MaxNorm", "max_value": 3.0, "axis": {"torch": 1, "jax": 0, "keras": [0]}}
    found = {
        framework: loaded(
            tmp_path,
            {
                "names": {"torch": "*.weight", "jax": ["*/kernel", "*/embedding"], "keras": "*/kernel"},
                "constraint": ball,
            },
            {"names": {"torch": "in_proj"}, "constraint": {"type": "NonNeg"}, "every": {"torch": 5}},
            {"names": "head*", "constraint": {"type": "MaxNorm"}, "joint": True, "metric": "optimizer"},
            {"names": "b", "constraint": {"type": "NonNeg"}, "tangent": "update"},
            {"names": "norm*", "constraint": "free"},
            framework=framework,
            ending=ending,
        )
        for framework in ("torch", "jax", "keras")
    }
    rest = {
        "head*": pg.Joint(pg.MaxNorm(), metric="optimizer"),
        "b": pg.Tag(pg.NonNeg(), tangent="update"),
        "norm*": None,
    }
    assert found["torch"] == {"*.weight": pg.MaxNorm(3.0, axis=1), "in_proj": pg.NonNeg().every(5)} | rest
    assert found["jax"] == {"*/kernel": pg.MaxNorm(3.0, axis=0), "*/embedding": pg.MaxNorm(3.0, axis=0)} | rest
    assert found["keras"] == {"*/kernel": pg.MaxNorm(3.0, axis=(0,))} | rest
    assert list(found["torch"]) == ["*.weight", "in_proj", "head*", "b", "norm*"]


def test_one_file_holds_in_torch_jax_and_keras(tmp_path):
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    jnp = pytest.importorskip("jax.numpy")
    pytest.importorskip("optax")
    import projgrad.keras
    import projgrad.optax
    import projgrad.torch

    names = {"torch": "hidden.weight", "jax": "hidden/kernel", "keras": "hidden/kernel"}
    path = written(tmp_path / "rules.toml", [{"names": names, "constraint": {"type": "UnitNorm"}}])
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    expected = kernel / np.linalg.norm(kernel, axis=0)

    network = torch.nn.ModuleDict({"hidden": torch.nn.Linear(3, 4)})
    network["hidden"].weight.data = torch.tensor(kernel.T.copy())
    projgrad.torch.project_params(network, pg.load_rules(path, "torch"))
    np.testing.assert_allclose(network["hidden"].weight.detach().numpy().T, expected, rtol=1e-6)

    params = {"hidden": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(4)}}
    found = projgrad.optax.project_params(params, pg.load_rules(path, "jax"))
    np.testing.assert_allclose(found["hidden"]["kernel"], expected, rtol=1e-6)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="hidden")])
    model.layers[0].kernel.assign(kernel)
    rules = pg.load_rules(path, "keras")
    optimizer = projgrad.keras.ProjectedOptimizer(keras.optimizers.SGD(0.1), rules, model=model)
    optimizer.build(model.trainable_variables)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model.layers[0].kernel), expected, rtol=1e-6)
    optimizer.plan.save(tmp_path / "plan.json")
    assert pg.load_plan(tmp_path / "plan.json") == optimizer.plan


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"names": "w", "constraint": {"type": "MaxNrom"}}, "no set is registered as 'MaxNrom'; the nearest: MaxNorm"),
        (
            {"names": "w", "constraint": {"type": "MaxNorm", "max_valu": 1}},
            "no argument 'max_valu'; the nearest: max_value",
        ),
        ({"names": "w", "constraint": {"type": "MaxNorm", "max_value": -1.0}}, r"rule 1 \(w\): MaxNorm"),
        ({"names": "w", "constraint": {"type": "MaxNorm", "axis": 1.5}}, "axis=1.5 is not an int"),
        ({"names": "w", "constraint": {"type": "Box", "lower": [[1.0], [1.0, 2.0]], "upper": 3.0}}, "not an array"),
        ({"names": "w", "constraint": {"type": "Tag", "constraint": {"type": "NonNeg"}}}, "Tag is not a constraint"),
        ({"names": "w", "constraint": {"type": "Function", "function": "os.system"}}, "no function is registered"),
        ({"names": "w", "constraint": {"type": ["MaxNorm"]}}, "no set is registered"),
        ({"names": "w", "constraint": {"max_value": 1.0}}, "a set needs a type"),
        ({"names": "w", "constraint": "fre"}, "a constraint is a table with a type"),
        ({"names": "w", "constraint": "free", "every": 2}, "has no options"),
        ({"names": "w", "constraint": {"type": "NonNeg"}, "evry": 2}, "no 'evry'; the nearest: every"),
        ({"names": "w", "constraint": {"type": "NonNeg"}, "every": 0}, "at least 1"),
        ({"names": "w", "constraint": {"type": "NonNeg"}, "metric": "adam"}, "metric='adam' is not known"),
        ({"names": "w", "constraint": {"type": "NonNeg"}, "joint": 1}, "neither true nor false"),
        ({"names": ["w", 3], "constraint": {"type": "NonNeg"}}, "neither a pattern nor a list"),
        ({"names": [], "constraint": {"type": "NonNeg"}}, r"names=\[\] is neither a pattern nor a list"),
        ({"names": None, "constraint": {"type": "NonNeg"}}, "names=None is neither"),
        ({"names": ["w", "w"], "constraint": {"type": "NonNeg"}}, "another rule is for 'w'"),
        ({"names": "w"}, "has no 'constraint'"),
        (
            {"names": {"troch": "w"}, "constraint": {"type": "NonNeg"}},
            r"'troch' is not one .*nearest to 'troch': torch",
        ),
        ({"names": {"torch": "w"}, "constraint": {"type": "NonNeg"}}, "names differs by framework: say which"),
        ({"names": "w", "constraint": {"type": "Slices", "parts": [{"type": "NonNg"}]}}, "nearest: NonNeg"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said(tmp_path, rule, says):
    with pytest.raises(ValueError, match=says) as caught:
        loaded(tmp_path, rule)
    assert str(tmp_path / "rules.json") in str(caught.value)


def test_a_value_for_another_framework_only_is_an_error(tmp_path):
    rule = {"names": "w", "constraint": {"type": "MaxNorm", "axis": {"jax": 0}}}
    with pytest.raises(ValueError, match="axis has no value for torch, but for jax"):
        loaded(tmp_path, rule, framework="torch")
    with pytest.raises(ValueError, match="framework='pytorch' is not known"):
        loaded(tmp_path, rule, framework="pytorch")
    assert set(FRAMEWORKS) == {"torch", "jax", "keras", "tensorflow"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rules.json", b"[" * 100_000, "nested too deep"),
        ("rules.toml", b"rules = " + b"[" * 100_000, "rules.toml"),
        ("rules.json", b'{"rules": [], "rules": []}', "'rules' is there twice"),
        ("rules.json", b'{"rules": NaN}', "NaN is not JSON"),
        ("rules.json", b'{"rules"', "rules.json"),
        ("rules.json", b"\xff\xfe", "not UTF-8"),
        ("rules.json", b"3", "a file of rules is a table"),
        ("rules.json", b'{"rule": []}', "no 'rule'; the nearest: rules"),
        ("rules.toml", b"rules = [", "rules.toml"),
        ("rules.toml", b"rules = [3]", "rule 1 is a table"),
        ("rules.yaml", b"", "ends in .toml or .json"),
    ],
)
def test_what_is_no_file_of_rules_is_said(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        pg.load_rules(path)


def test_only_regular_files_of_some_size_are_read(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        pg.load_rules(tmp_path)
    with (tmp_path / "rules.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="more than .* are not read"):
        pg.load_rules(tmp_path / "rules.json")


RULES = {
    "a*": pg.MaxNorm(pg.Schedule({0: 3.0, 10: 1.0})),
    "b": pg.Tag(pg.UnitNorm(axis=1) & pg.Box(0.0, 0.9), every=3, metric="optimizer"),
    "c": pg.Slices([pg.UnitNorm(), None], along=1).relaxed(0.5),
    "d*": pg.Joint(pg.MaxNorm(1.0), every=2),
    "e": pg.Tag(pg.NonNeg(), tangent="gradient"),
    "f": pg.Mask(np.eye(3)),
}
SHAPES = {
    "a1": (3, 4),
    "a2": (5, 4),
    "b": (2, 3),
    "c": (3, 4),
    "d1": (3, 4),
    "d2": (4,),
    "e": (),
    "f": (3, 3),
    "g": (2,),
}


def test_a_plan_comes_back_with_all_its_options(tmp_path):
    rules = RULES | {"h*": pg.Joint(pg.MaxNorm(2.0, axis=None))}
    shapes = SHAPES | {"h1": (2, 3), "h2": (4,)}
    plan = plan_of(rules, shapes)
    plan.save(tmp_path / "plan.json")
    found = pg.load_plan(tmp_path / "plan.json")
    assert found == plan
    assert repr(found) == repr(plan)
    assert [entry.layout for entry in found] == [entry.layout for entry in plan]
    arrays = [np.random.default_rng(0).normal(size=shape) for shape in ((3, 4), (4,))]
    joint = next(entry for entry in found if entry.name == "d1 + d2")
    for a, b in zip(joint.project(arrays), next(e for e in plan if e.name == joint.name).project(arrays), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_that_cannot_be_saved_is_refused_and_the_old_one_stays(tmp_path):
    path = tmp_path / "plan.json"
    plan_of({"w": pg.NonNeg()}, {"w": (2,)}).save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="w cannot be saved: .*register"):
        plan_of({"w": lambda x: x}, {"w": (2,)}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_name_that_would_not_be_read_again_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"a\\nb cannot be saved: its name"):
        plan_of({"*": pg.NonNeg()}, {"a\nb": (2,)}).save(tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


def changed(saved, **fields):
    return {**saved, "entries": [saved["entries"][0] | fields]}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda s: s | {"projgrad_plan": 2}, "no plan of the format 1"),
        (lambda s: {"entries": []}, "no plan of the format 1"),
        (lambda s: s | {"entries": s["entries"] * 2}, "there twice"),
        (lambda s: s | {"entrys": []}, "no 'entrys'; the nearest: entries"),
        (lambda s: changed(s, names=[]), "not those of parameters"),
        (lambda s: changed(s, shapes=[[3, -1]]), "not a list of numbers"),
        (lambda s: changed(s, shapes=[]), "1 names and 0 shapes"),
        (lambda s: changed(s, names=["w", "v"], shapes=[[3, 4]] * 2), "several parameters in one set need a layout"),
        (lambda s: changed(s, joint="yes"), "joint='yes' is neither true nor false"),
        (lambda s: changed(s, shapes=[[3]]), "axis 1 does not exist"),
        (lambda s: changed(s, constraint={"type": "MaxNorm"}), 'not "incoming"'),
        (lambda s: changed(s, constraint={"type": "MaxNrm", "axis": 1}), "nearest: MaxNorm"),
        (lambda s: changed(s, layout=[[[0, 0]]]), "its layout has the axes"),
        (lambda s: changed(s, layout=[]), "its layout does not fit"),
        (lambda s: changed(s, every="2"), "every='2' is not an int"),
    ],
)
def test_what_is_wrong_with_a_saved_plan_is_said(tmp_path, edit, says):
    path = tmp_path / "plan.json"
    plan_of({"w": pg.MaxNorm(1.0, axis=1)}, {"w": (3, 4)}).save(path)
    assert len(pg.load_plan(path)) == 1
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=says):
        pg.load_plan(path)


def test_units_of_a_saved_layout_must_agree(tmp_path):
    path = tmp_path / "plan.json"
    plan = plan_of({"d*": pg.Joint(pg.MaxNorm(1.0))}, {"d1": (3, 4), "d2": (2, 4)})
    plan.save(path)
    assert pg.load_plan(path) == plan
    assert plan[0] != replace(plan[0], shapes=((3, 4), (2, 5)))
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(changed(saved, shapes=[[3, 4], [2, 5]])))
    with pytest.raises(ValueError, match="number of units"):
        pg.load_plan(path)
