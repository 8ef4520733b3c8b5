"""What a visitor may upload: each refusal by bytes made by hand, hostile names shown as text, nothing left behind."""

import gzip
import io
import json
import math
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_audit_page import HOSTILE, Tags

from spectral_core.demo import audit_panel, upload
from spectral_core.demo.audit_panel import audit_file
from spectral_core.demo.upload import LIMIT, UploadError, check_upload, remove_upload, shown_name

SAVE = "save the weights with safetensors.torch.save_file"
RUN = f"a pickle can run code when it is read; {SAVE}"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Where Gradio would put uploads; a function that puts one there."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    def put(content, name="model.safetensors"):
        folder = tmp_path / "uploads" / "0123abcd"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return folder / name

    return put


@pytest.fixture
def here(monkeypatch):
    """The audit in this process, which is quicker; a function that says what was audited."""
    audited = []

    def make(target, name, heads):
        audited.append(target)
        return audit_panel.make_fragment(target, name, heads)

    monkeypatch.setattr(audit_panel, "_in_process", make)
    return audited


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def layer(prefix="layers.0.attn", values=None, dtype="F32", seed=0):
    """(header, data) of Q, K and V as 8 × 8 matrices of one dtype."""
    generator, header, data = np.random.default_rng(seed), {}, b""
    for role in ("q_proj", "k_proj", "v_proj"):
        numbers = generator.normal(size=(8, 8)).astype("<f4")
        block = numbers.tobytes() if values is None else values
        header[f"{prefix}.{role}.weight"] = tensor(dtype, (8, 8), (len(data), len(data) + len(block)))
        data += block
    return header, data


def refused(path, name=""):
    with pytest.raises(UploadError) as caught:
        check_upload(path, name)
    return str(caught.value)


def zip_bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(30_000_000))
    return out.getvalue()


def torch_saved(**options):
    out = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, out, **options)
    return out.getvalue()


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


OTHER_KINDS = {
    "pickle-0": (pickle.dumps(Bomb(), protocol=0), f"a pickle; {RUN}"),
    "pickle-1": (pickle.dumps({"a": 1}, protocol=1), f"a pickle; {RUN}"),
    "pickle-2": (pickle.dumps(Bomb(), protocol=2), f"a pickle; {RUN}"),
    "pickle-4": (pickle.dumps(Bomb(), protocol=4), f"a pickle; {RUN}"),
    "short-pickle": (pickle.dumps(1), f"a pickle; {RUN}"),
    "torch-old": (torch_saved(_use_new_zipfile_serialization=False), f"a pickle; {RUN}"),
    "torch-zip": (torch_saved(), f"a zip archive, as torch.save writes it around a pickle; {RUN}"),
    "zip-bomb": (zip_bomb(), f"a zip archive, as torch.save writes it around a pickle; {RUN}"),
    "gzip": (gzip.compress(packed({})), f"a gzip archive; unpack it first, and if it holds no safetensors, {SAVE}"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(99), f"a GGUF file, whose weights are quantised; {SAVE} from the original"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(9), f"an HDF5 file; read it with its own library, then {SAVE}"),
    "html": (b"\n <!DOCTYPE html><title>404", "a web page (HTML); download the file itself, not the page about it"),
    "html-2": (b"<html lang='en'>", "a web page (HTML); download the file itself, not the page about it"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer instead of the weights; fetch them"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_files_are_named_and_never_read(kind, store, here, monkeypatch):
    content, expected = OTHER_KINDS[kind]
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda *a, **k: pytest.fail("opened"))
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("opened"))
    path = store(content)
    assert refused(path).startswith(f"model.safetensors: expected safetensors, got {expected}")
    shown = audit_file(str(path))
    assert shown.startswith('<p class="notice" role="alert">model.safetensors: expected safetensors, got ')
    assert not here
    assert not path.parent.exists()


HEADERS = {
    "empty": (b"", "expected a safetensors file, got an empty one; upload it again"),
    "short": (b"{}", "expected a safetensors file, got 2 bytes; upload it again"),
    "5 GB": (struct.pack("<Q", 5 * 10**9) + b"{}", "expected a header of at most 10 MB, got one that claims 5,000 MB; "
             f"the file is damaged or not safetensors: {SAVE}"),
    "2^64": (b"\xff" * 8 + b"{}", "expected a header of at most 10 MB, got one that claims 18,446,744,073,710 MB"),
    "cut off": (struct.pack("<Q", 500) + b"{}", "expected a header of 500 bytes, got a file with 2 after its length; "
                "it is cut off: upload it again"),
    "no JSON": (packed(b"{a: 1}"), "expected a header in JSON, got something else (Expecting property name enclosed"),
    "no UTF-8": (packed(b"\xff\xfe{\0}\0"), "expected a header in JSON, got something else ('utf-8' codec can't dec"),
    "list": (packed(b'["a"]'), f"expected tensors by name in the header, got list; {SAVE}"),
    "number": (packed(b"4"), f"expected tensors by name in the header, got int; {SAVE}"),
    "long number": (packed(b'{"a":' + b"9" * 9000 + b"}"), "expected a header in JSON, got something else (Exceeds"),
    "deep": (packed(b'{"a":' * 5000 + b"}" * 5000), f"expected a flat header, got one too deeply nested; {SAVE}"),
    "twice": (packed(b'{"a": 1, "a": 2}'), f"got something else (the same name twice); {SAVE}"),
    "twice inside": (packed(b'{"a": {"shape": [], "shape": []}}'), f"something else (the same name twice); {SAVE}"),
    "no tensor": (packed({"__metadata__": {"a": "b"}}), "expected 1 to 20,000 tensors, got 0; audit larger files with "
                  "the command line `spectral-core audit FILE`"),
    "many": (packed({str(i): tensor(shape=[0], offsets=[0, 0]) for i in range(20_001)}),
             "expected 1 to 20,000 tensors, got 20,001; audit larger files with the command line"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_is_none(kind, store, here):
    content, expected = HEADERS[kind]
    path = store(content)
    assert expected in refused(path)
    assert refused(path).startswith("model.safetensors: ")
    assert 'role="alert"' in audit_file(str(path))
    assert (here, path.parent.exists()) == ([], False)


def test_any_depth_is_refused_or_read(store):
    said = set()
    for depth in range(850, 1010, 3):  # up to where reading works and showing would not
        value = b"[" * depth + b"]" * depth
        message = refused(store(packed(b'{"a": {"dtype": "F32", "data_offsets": [0, 4], "shape": ' + value + b"}}")))
        said.add(message.partition("expected ")[2][:16])
    assert said == {"a shape of whole", "a flat header, g"}


SHAPE = "expected a shape of whole numbers that fits a file, got "
OFFSETS = "expected two offsets, the smaller one first"
TENSORS = {
    "no entry": (3, "expected dtype, shape and data_offsets, got 3;"),
    "no dtype": ({"shape": [1], "data_offsets": [0, 4]}, 'data_offsets, got {"shape": [1], "data_offsets": [0, 4]};'),
    "more": (tensor() | {"code": 1}, "expected dtype, shape and data_offsets, got "),
    "dtype": (tensor("F33"), 'expected a dtype of the format, such as F32, got "F33"; '),
    "dtype list": (tensor(["F32"]), 'expected a dtype of the format, such as F32, got ["F32"]; '),
    "negative": (tensor(shape=(-2, -2)), f"{SHAPE}[-2, -2];"),
    "fraction": (tensor(shape=(2.0, 2)), f"{SHAPE}[2.0, 2];"),
    "text": (tensor(shape=("2", 2)), f'{SHAPE}["2", 2];'),
    "truth": (tensor(shape=(True, 4)), f"{SHAPE}[true, 4];"),
    "nothing": (tensor() | {"shape": None}, f"{SHAPE}null;"),
    "overflow": (tensor(shape=(2**32, 2**32)), f"{SHAPE}[4294967296, 4294967296];"),
    "overflow to 16": (tensor("U8", shape=(2**62, 4, 16)), f"{SHAPE}[4611686018427387904, 4, 16];"),
    "overflow to 0": (tensor(shape=(2**40, 2**40, 0), offsets=(0, 0)), f"{SHAPE}[1099511627776, 1099511627776, 0];"),
    "huge": (tensor(shape=(10**30,)), f"{SHAPE}[1000000000000000000000000000000];"),
    "many sides": (tensor(shape=[1] * 99), f"{SHAPE}[1, 1, 1,"),
    "backwards": (tensor(offsets=(16, 0)), f"{OFFSETS}, got [16, 0];"),
    "below": (tensor(offsets=(-16, 0)), f"{OFFSETS}, got [-16, 0];"),
    "three": (tensor(offsets=(0, 8, 16)), f"{OFFSETS}, got [0, 8, 16];"),
    "beyond": (tensor(shape=(2, 4), offsets=(0, 32)), "expected 32 bytes of data, got 16; it is cut off: upload it"),
    "rest": (tensor(shape=(2,), offsets=(0, 8)), "expected 8 bytes of data, got 16; it is longer than its tensors"),
    "hole": (tensor(shape=(2,), offsets=(8, 16)), "expected tensors one after the other, got some with a hole before"),
    "size": (tensor("F64"), "expected as many bytes as 2 × 2 of F64 takes, got 16; "),
    "scalar": (tensor(shape=()), "expected as many bytes as one number of F32 takes, got 16; "),
    "half a byte": (tensor("F4", (3, 11)), "expected as many bytes as 3 × 11 of F4 takes, got 16; "),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_is_not_as_its_file_says(kind, store, here):
    entry, expected = TENSORS[kind]
    path = store(packed({"w": entry}, bytes(16)))
    assert expected in refused(path)
    assert 'role="alert"' in audit_file(str(path))
    assert (here, path.parent.exists()) == ([], False)


def test_tensors_that_overlap(store):
    header = {"a": tensor(shape=(3,), offsets=(0, 12)), "b": tensor(shape=(2,), offsets=(8, 16))}
    message = f"expected tensors one after the other, got some that overlap; {SAVE}"
    assert refused(store(packed(header, bytes(16)))) == f"model.safetensors: {message}"


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 0x8B1F])
def test_a_length_that_looks_like_another_format_is_still_a_length(length, store):
    header = json.dumps({"w": tensor()}).encode()
    path = store(packed(header + b" " * (length - len(header)), bytes(16)))
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")
    check_upload(path)


def test_what_the_library_writes_passes(store, tmp_path):
    types = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn,
             torch.float8_e5m2, torch.complex64, torch.uint16]  # fmt: skip
    weights = {str(t): torch.zeros(3, 5).to(t) for t in types} | {"scalar": torch.tensor(1.0), "none": torch.zeros(0)}
    save_file(weights, tmp_path / "x.safetensors", {"format": "pt"})
    check_upload(store((tmp_path / "x.safetensors").read_bytes()))


def test_a_file_that_is_too_large_is_not_read(store, monkeypatch):
    path = store(packed({"w": tensor()}, bytes(16)))
    with path.open("r+b") as file:
        file.truncate(LIMIT + 1_000_000)  # sparse
    monkeypatch.setattr(upload.Path, "open", lambda *a, **k: pytest.fail("read"))
    said = "expected at most 300 MB, got 301 MB; audit it where it is, with the command line `spectral-core audit FILE`"
    assert refused(path) == f"model.safetensors: {said}"


@pytest.mark.parametrize(("name", "ending"), [
    ("model.bin", ".bin"), ("model.SAFETENSORS", ".SAFETENSORS"), ("safetensors", "none"),
])  # fmt: skip
def test_a_wrong_ending(name, ending, store, here):
    path = store(packed({"w": tensor()}, bytes(16)), name)
    assert refused(path) == f"{name}: expected the ending .safetensors, got {ending!r}; {SAVE}"
    audit_file(str(path))
    assert (here, path.parent.exists()) == ([], False)


def test_links_and_folders_are_refused_and_the_target_stays(store, tmp_path):
    outside = tmp_path / "secret.safetensors"
    outside.write_bytes(packed({"w": tensor()}, bytes(16)))
    folder = store(b"").parent
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "folder.safetensors").mkdir()
    plain = "expected a plain file, got a link or a folder; upload the file itself"
    assert refused(folder / "link.safetensors") == f"link.safetensors: {plain}"
    assert refused(folder / "folder.safetensors") == f"folder.safetensors: {plain}"
    assert "expected a plain file" in audit_file(str(folder / "link.safetensors"))
    assert outside.exists()
    assert not (folder / "link.safetensors").is_symlink()
    gone = "gone.safetensors: expected a file that can be read, got none; upload it again"
    assert refused(folder / "gone.safetensors") == gone


def test_nothing_outside_of_the_folder_of_uploads_is_audited_or_removed(store, here, tmp_path, monkeypatch):
    inside = store(packed(*layer()))
    outside = tmp_path / "mine" / "model.safetensors"
    outside.parent.mkdir()
    outside.write_bytes(inside.read_bytes())
    (inside.parent / "door").symlink_to(outside.parent)
    monkeypatch.chdir(outside.parent)
    ways = [outside, "model.safetensors", inside.parent / "door" / outside.name, inside.parent / ".." / ".." / "mine" /
            outside.name, inside.parent.parent, inside.parent.parent / "..", "a\0b", "x" * 5000, "~root", "", "/"]
    for path in ways:
        shown = audit_file(str(path))
        assert "expected a file that was uploaded here, got another one; upload it" in shown
        assert str(tmp_path) not in shown
        remove_upload(path)
    remove_upload(None)
    assert outside.exists()
    assert inside.exists()
    assert here == []


def test_a_folder_goes_with_its_last_file_and_the_folder_of_uploads_stays(store):
    first, second = store(b"1"), store(b"2", "second.safetensors")
    remove_upload(first)
    assert second.exists()
    remove_upload(first)  # twice does no harm
    remove_upload(second)
    assert not second.parent.exists()
    loose = second.parent.parent / "loose.safetensors"
    loose.write_bytes(b"3")
    remove_upload(loose)
    assert list(loose.parent.iterdir()) == []


def test_names_are_shown_as_text(store, here):
    name = "../../a\x1b[2J\n\u202e<script>alert(1)</script>.safetensors"
    assert shown_name(name) == "script>.safetensors"
    assert shown_name("C:\\secret\\a\x1b[2J\n\u202eb") == r"a\x1b[2J\n\u202eb"
    assert len(shown_name("\u202e" * 500)) == 100
    assert shown_name("") == shown_name("a/") == "the file"
    path = store(packed(*layer()))
    shown = audit_file(str(path), "a\x1b[2J\u202e<img src=x onerror=alert(1)>.safetensors", 2)
    assert r"<h2>a\x1b[2J\u202e&lt;img src=x onerror=alert(1)&gt;.safetensors</h2>" in shown
    assert [Path(target).name for target in here] == [path.name]
    assert not path.parent.exists()
    path = store(b"")
    assert "a&lt;b: expected a safetensors file, got an empty one" in audit_file(str(path), "x/a<b")


def test_another_visitor_with_the_same_file_keeps_it(store, monkeypatch):
    """Gradio stores equal files at one place."""
    path = store(packed(*layer()))
    first = []

    def while_the_second_uploads(target, *_):
        first.append(Path(target))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"the second visitor's")
        return "done"

    monkeypatch.setattr("spectral_core.demo.audit_panel._in_process", while_the_second_uploads)
    assert audit_file(str(path)) == "done"
    assert path.read_bytes() == b"the second visitor's"
    assert not first[0].exists()
    assert not first[0].parent.exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "C:\\\\secret", "a\0b", "~/x", HOSTILE, "\x1b[2J\u202e"])
def test_hostile_names_of_tensors_are_audited_and_shown_as_text(name, store, here):
    header, data = layer(f"{name}.attn")
    header["__metadata__"] = {HOSTILE: HOSTILE}
    path = store(packed(header, data))
    shown = audit_file(str(path), heads=2)
    tags = Tags()
    tags.feed(shown)
    assert not tags.seen & {"img", "script", "iframe", "object", "style", "link"}
    assert tags.events == []
    assert "1 attention layer, 3 whole matrices and 6 head matrices were measured." in shown
    assert not set(shown) & set("\0\x1b\u202e\r")
    assert str(path.parent) not in shown
    assert not path.parent.exists()


def test_a_name_of_a_tensor_that_climbs_is_refused_in_words(store, here):
    shown = audit_file(str(path := store(packed(*layer("../../../etc/passwd")))))
    assert "../../../etc/passwd.k_proj.weight&#x27;: expected the name of a parameter, got one that no module" in shown
    assert not path.parent.exists()


def test_hostile_names_in_a_refusal_are_text_too(store):
    message = refused(store(packed({"\x1b[2J\u202e" + HOSTILE: tensor("F33")}, bytes(16))))
    assert message.startswith(r"model.safetensors: tensor '\\x1b[2J\\u202e<img src=x")
    shown = audit_file(str(store(packed({HOSTILE: tensor("<b>")}, bytes(16)))))
    assert "&lt;img src=x onerror" in shown
    assert "got &quot;&lt;b&gt;&quot;" in shown


def test_weights_that_are_no_numbers_are_gaps(store, here):
    path = store(packed(*layer(values=np.full(64, math.nan, "<f4").tobytes())))
    shown = audit_file(str(path))
    assert "64 of 64 entries are nan or infinite" in shown
    assert "The audit is incomplete: 3 gaps, listed below." in shown
    assert not path.parent.exists()


@pytest.mark.parametrize(("dtype", "as_torch"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_weights_of_eight_bits(dtype, as_torch, store, here):
    values = torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).to(as_torch)
    path = store(packed(*layer(values=values.view(torch.uint8).numpy().tobytes(), dtype=dtype)))
    shown = audit_file(str(path), heads=1)
    kappa = np.linalg.cond(values.double().numpy())
    rows = re.findall(r"<tr><td>0</td><td>[QKV]</td><td>0</td><td>([\d.]+)</td>", shown)
    assert [float(row) for row in rows] == pytest.approx([kappa] * 3, rel=1e-6)
    assert not path.parent.exists()


@pytest.mark.parametrize(("dtype", "said"), [
    ("F4", "expected the shape (8, 8), got (8, 4)"),
    ("I8", "dtype I8: expected floating-point weights, got another type (quantised?)"),
    ("BOOL", "dtype BOOL: expected floating-point weights, got another type (quantised?)"),
])  # fmt: skip
def test_weights_of_other_types_are_gaps(dtype, said, store, here):
    size = 32 if dtype == "F4" else 64
    path = store(packed(*layer(values=bytes(size), dtype=dtype)))
    shown = audit_file(str(path))
    assert "The audit is incomplete: 3 gaps, listed below." in shown
    assert said in shown
    assert "Traceback" not in shown
    assert not path.parent.exists()


def test_a_file_without_attention_says_so(store, here):
    shown = audit_file(str(path := store(packed({"w": tensor()}, bytes(16)))))
    assert shown.startswith('<p class="notice" role="alert">model.safetensors: ')
    assert str(path.parent) not in shown
    assert not path.parent.exists()
