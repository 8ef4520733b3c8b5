"""Detection: operators against their definitions in NumPy, scenes against their masks, scores against known ones."""

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_core import find_projections
from spectral_core.experiments.average_precision import average_precision, score
from spectral_core.experiments.coco import CocoExamples
from spectral_core.experiments.detection import ShapeExamples, tasks
from spectral_core.experiments.detection_operators import install, nms, roi_align
from spectral_core.experiments.shapes import SHAPES, coco_annotations, draw_scene, tight_boxes
from spectral_core.experiments.task import Setting, random_state

SEEDS = range(5)


def boxes_of(seed, count, size=20.0):
    g = np.random.default_rng(seed)
    corner, extent = g.uniform(0, size, (count, 2)), g.uniform(1, size / 2, (count, 2))
    return np.concatenate([corner, corner + extent], axis=1).astype(np.float32)


def keep_by_definition(boxes, scores, threshold):
    boxes = boxes.astype(np.float64)
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for j in kept:
            w = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0])
            h = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1])
            shared = max(w, 0) * max(h, 0)
            both = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j]))
            if shared / (both - shared) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_keeps_what_its_definition_keeps(seed, threshold):
    boxes = boxes_of(seed, 60)
    scores = np.random.default_rng(seed).integers(0, 8, 60).astype(np.float32)  # many ties
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == keep_by_definition(boxes, scores, threshold)


def test_nms_crosses_blocks_of_rows(monkeypatch):
    boxes, scores = boxes_of(0, 90), np.random.default_rng(1).random(90).astype(np.float32)
    monkeypatch.setattr("spectral_core.experiments.detection_operators.BLOCK", 7)
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.2)
    assert kept.tolist() == keep_by_definition(boxes, scores, 0.2)


def test_nms_keeps_a_box_that_overlaps_by_exactly_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]])
    assert nms(boxes, torch.tensor([3.0, 2, 1]), 0.5).tolist() == [0, 1]


def test_nms_of_nothing_is_nothing_and_of_misfits_an_error():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    flat = torch.zeros(2, 4)  # 0/0 suppresses nothing
    assert nms(flat, torch.tensor([1.0, 2.0]), 0.5).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"expected \(n, 4\) and \(n,\), got \(2, 4\) and \(3,\); give one score"):
        nms(flat, torch.zeros(3), 0.5)


def sample(plane, y, x):
    """Bilinear value of (h, w) at a point; 0 more than a pixel outside, the nearest pixel's within that."""
    h, w = plane.shape
    if y < -1 or y > h or x < -1 or x > w:
        return 0.0
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    fy, fx = y - top, x - left
    upper = plane[top, left] * (1 - fx) + plane[top, right] * fx
    lower = plane[bottom, left] * (1 - fx) + plane[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


def pool_by_definition(features, rois, scale, height, width, ratio, aligned):
    out = np.zeros((len(rois), features.shape[1], height, width))
    for k, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in corners)
        tall, wide = y2 - y1, x2 - x1
        if not aligned:
            tall, wide = max(tall, 1.0), max(wide, 1.0)
        down, across = (ratio, ratio) if ratio > 0 else (math.ceil(tall / height), math.ceil(wide / width))
        for c, p, q in np.ndindex(*out.shape[1:]):
            values = [
                sample(
                    features[int(image), c],
                    y1 + (p + (i + 0.5) / down) * tall / height,
                    x1 + (q + (j + 0.5) / across) * wide / width,
                )
                for i in range(down)
                for j in range(across)
            ]
            out[k, c, p, q] = sum(values) / max(down * across, 1)
    return out


ROIS = np.array(
    [
        [1, 2.0, 3.0, 21.0, 17.5],
        [0, -9.0, -6.0, 8.0, 7.0],  # partly outside, at both ends
        [1, 20.0, 10.0, 60.0, 50.0],
        [0, 5.2, 5.3, 5.9, 5.4],  # less than a pixel
        [0, 100.0, 100.0, 120.0, 120.0],  # wholly outside
        [0, 0.0, 0.0, 28.0, 24.0],
    ]
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [2, 3, 0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_roi_align_is_its_definition(aligned, ratio, scale):
    features = np.random.default_rng(0).standard_normal((2, 3, 6, 7))
    wanted = pool_by_definition(features, ROIS, scale, 3, 2, ratio, aligned)
    got = roi_align(torch.from_numpy(features), torch.from_numpy(ROIS), scale, 3, 2, ratio, aligned)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-12)
    single = roi_align(torch.from_numpy(features).float(), torch.from_numpy(ROIS).float(), scale, 3, 2, ratio, aligned)
    np.testing.assert_allclose(single.numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("ratio", [2, 0])
def test_roi_align_has_the_right_gradient(ratio):
    features = torch.randn(2, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rois = torch.from_numpy(ROIS)
    assert torch.autograd.gradcheck(
        lambda f: roi_align(f, rois, 0.25, 2, 2, ratio, False), features.requires_grad_(True)
    )


def test_roi_align_keeps_the_type_and_takes_no_boxes():
    features = torch.ones(1, 2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    assert roi_align(features, torch.tensor([[0.0, 0, 0, 3, 3]]), 1.0, 2, 2, 2, False).dtype == torch.bfloat16
    none = roi_align(features, torch.zeros(0, 5), 1.0, 3, 2, 2, False)
    assert none.shape == (0, 2, 3, 2)
    none.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_torchvision_uses_them_after_install_and_a_second_install_does_nothing():
    install()
    assert install() == []
    import torchvision

    boxes, scores = boxes_of(3, 50), np.random.default_rng(3).random(50).astype(np.float32)
    kept = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.3)
    assert kept.tolist() == keep_by_definition(boxes, scores, 0.3)
    features = torch.randn(2, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = torchvision.ops.roi_align(features, torch.from_numpy(ROIS), (3, 2), 0.25, 2, aligned=True)
    np.testing.assert_allclose(got, pool_by_definition(features.numpy(), ROIS, 0.25, 3, 2, 2, True), atol=1e-12)


def test_a_scene_depends_on_its_numbers_alone():
    first = draw_scene(3, 5)
    torch.rand(7)
    again = draw_scene(3, 5)
    assert torch.equal(first["image"], again["image"])
    assert all(torch.equal(first["target"][key], again["target"][key]) for key in first["target"])
    assert not torch.equal(first["image"], draw_scene(3, 6)["image"])
    assert not torch.equal(first["image"], draw_scene(4, 5)["image"])
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, got 16"):
        draw_scene(0, 0, size=16)


@pytest.mark.parametrize("size", [64, 96])
def test_boxes_are_tight_and_masks_do_not_meet(size):
    counts, labels, overlapping = set(), set(), False
    for index in range(60):
        scene = draw_scene(0, index, size)
        boxes, masks = scene["target"]["boxes"], scene["target"]["masks"]
        assert scene["image"].shape == (3, size, size)
        assert 0 <= scene["image"].min() <= scene["image"].max() <= 1
        assert masks.sum(0).max() == 1  # a pixel shows one shape
        for box, mask in zip(boxes.int().tolist(), masks, strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert max(box[2] - box[0], box[3] - box[1]) <= 33
        # the shapes can be told from the background: noise has deviation 0.05
        background = scene["image"][:, masks.sum(0) == 0].mean(1)
        assert all((scene["image"][:, m > 0].mean(1) - background).abs().min() > 0.25 for m in masks)
        counts.add(len(masks))
        labels.update(scene["target"]["labels"].tolist())
        corner = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        extent = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner
        overlapping |= bool(((extent > 0).all(-1).sum() > len(boxes)).item())
    assert counts == {1, 2, 3, 4}
    assert labels == {1, 2, 3}
    assert overlapping
    assert tight_boxes(torch.eye(3, dtype=torch.bool)[None]).tolist() == [[0, 0, 3, 3]]


def perfect(annotations, kind):
    key = {"bbox": "bbox", "segm": "segmentation"}[kind]
    return [{k: a[k] for k in ("image_id", "category_id", key)} | {"score": 0.9} for a in annotations["annotations"]]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_is_1_and_empty_is_0(kind, capsys):
    annotations = coco_annotations(draw_scene(0, index)["target"] for index in range(6))
    json.dumps(annotations)
    assert score(annotations, perfect(annotations, kind), kind) == pytest.approx(1.0)
    assert score(annotations, [], kind) == 0.0
    wrong = [{**r, "category_id": r["category_id"] % 3 + 1} for r in perfect(annotations, kind)]
    assert score(annotations, wrong, kind) < 0.2
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="expected at least one object, got none"):
        score(coco_annotations([]), [], kind)


def test_annotations_load_in_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    targets = [draw_scene(1, index)["target"] for index in range(3)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco_annotations(targets)))
    coco = COCO(path)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(SHAPES)
    for image, target in enumerate(targets, start=1):
        found = coco.loadAnns(coco.getAnnIds(image))
        assert np.array_equal(np.stack([coco.annToMask(a) for a in found]), target["masks"].numpy())
        assert [a["area"] for a in found] == target["masks"].sum((1, 2)).tolist()


@cache
def small_model():
    task = tasks()[0]
    return task.model(Setting(), task.data(Setting()), 0)


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
def test_two_steps_are_finite_and_reach_every_parameter(task):
    setting = Setting()
    examples = task.data(setting)
    model = task.model(setting, examples, 0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for step in range(2):
        with random_state(0, step):
            loss = task.loss(model, examples.batch(0, step, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert 0 <= task.evaluate(model, examples.held_out("validation")[:1]) <= 1
    assert model.training
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]


def test_two_scenes_are_learnt_by_heart():
    task = tasks()[0]
    batch = ShapeExamples().batch(0, 0, 2)
    model = task.model(Setting(), ShapeExamples(), 0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for step in range(60):
        with random_state(0, step):
            loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_model_and_the_first_loss_repeat():
    task = tasks()[0]
    batch = ShapeExamples().batch(0, 0, 2)

    def first_loss():
        model = task.model(Setting(), ShapeExamples(), 3).train()
        with random_state(0, 0):
            return task.loss(model, batch).item()

    assert first_loss() == first_loss()


def test_attention_of_xcit_is_found_and_any_size_can_be_called():
    projections = find_projections(small_model())
    wanted = {(f"backbone.xcit.blocks.{block}.attn", role) for block in range(3) for role in "qkv"}
    assert {(p.attention, p.role) for p in projections} == wanted
    model = small_model().eval()
    for size in (64, 96):
        image = draw_scene(0, 0, size)
        with torch.no_grad():
            (output,) = model(*tasks()[0].inputs({"images": [image["image"]], "targets": [image["target"]]}))
        assert output["masks"].shape[1:] == (1, size, size)


def test_held_out_scenes_are_fixed_and_apart():
    examples = ShapeExamples()
    validation, test = examples.held_out("validation"), examples.held_out("test")
    assert [sum(len(b["images"]) for b in part) for part in (validation, test)] == [24, 48]
    images = [i for part in (validation, test, [examples.batch(0, 0, 24)]) for b in part for i in b["images"]]
    assert len({i.numpy().tobytes() for i in images}) == 96
    assert torch.equal(examples.held_out("test")[2]["images"][1], test[2]["images"][1])


def write_coco(folder, count=6):
    (folder / "annotations").mkdir()
    for seed, split in enumerate(["train2017", "val2017"]):
        (folder / split).mkdir()
        scenes = [draw_scene(seed, index) for index in range(count)]
        annotations = coco_annotations(s["target"] for s in scenes)
        for category in annotations["categories"]:
            category["id"] *= 10  # COCO's numbers have gaps
        for a in annotations["annotations"]:
            a["category_id"] *= 10
        annotations["annotations"][0]["iscrowd"] = 1
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(annotations))
        for entry, scene in zip(annotations["images"], scenes, strict=True):
            pixels = (scene["image"].permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(folder / split / entry["file_name"])


def test_a_coco_folder_is_read_mirrored_and_scored(tmp_path):
    write_coco(tmp_path)
    examples = CocoExamples(tmp_path)
    assert list(examples.names) == list(SHAPES)
    batches = [examples.batch(0, step, 4) for step in range(6)]
    assert torch.equal(batches[2]["images"][3], examples.batch(0, 2, 4)["images"][3])
    originals = [draw_scene(0, index) for index in range(6)]
    straight = mirrored = 0
    for batch in batches:
        for image, target in zip(batch["images"], batch["targets"], strict=True):
            assert not target["iscrowd"].any()
            assert torch.equal(target["boxes"], tight_boxes(target["masks"] > 0))
            straight += any((image - s["image"]).abs().max() < 0.01 for s in originals)
            mirrored += any((image.flip(2) - s["image"]).abs().max() < 0.01 for s in originals)
    assert straight + mirrored == 24
    assert min(straight, mirrored) > 3

    validation, test = examples.held_out("validation"), examples.held_out("test")
    assert (len(validation), len(test), len(test[1:])) == (2, 4, 3)
    assert validation[0]["targets"][0]["iscrowd"].tolist()[0] == 1
    assert torch.equal(test[0]["targets"][0]["labels"], draw_scene(1, 1)["target"]["labels"])
    assert 0 <= average_precision(small_model(), validation, "segm") <= 1


def test_a_folder_that_is_not_coco_says_what_is_expected_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"instances_train2017.json: expected COCO 2017 as annotations/"):
        tasks()[0].data(Setting("full", tmp_path))
    write_coco(tmp_path, 1)
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="got one without annotations, categories; take the instances_ file"):
        CocoExamples(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON, got .*; download the file again"):
        CocoExamples(tmp_path)
