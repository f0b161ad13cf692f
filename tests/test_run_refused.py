"""Bad input of a command: one line with the remedy, exit code 2, before any slow work."""

import os
import shutil

from conftest import refuse

from cca.model.bundled import BUNDLED


def test_a_missing_model_folder_is_named(tmp_path, capsys):
    refuse(["run", "--model", str(tmp_path / "nothing"), "--out", str(tmp_path / "r")], capsys, "nothing", "model.path")


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path, capsys):
    from transformers import BertConfig, T5Config

    T5Config().save_pretrained(tmp_path / "t5")
    refuse(
        ["run", "--model", str(tmp_path / "t5"), "--out", str(tmp_path / "r")], capsys, "t5", "causal language model"
    )
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    refuse(["run", "--model", str(tmp_path / "bert"), "--out", str(tmp_path / "r")], capsys, "BertModel")


def test_a_model_without_a_tokenizer_is_refused(tmp_path, capsys, bundled):
    bundled.network.save_pretrained(tmp_path / "m")
    refuse(["run", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "r")], capsys, "no usable tokenizer")


def test_a_model_folder_without_weights_is_refused(tmp_path, capsys):
    shutil.copytree(BUNDLED, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    refuse(["run", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "r")], capsys, "holds no weights")
    assert not (tmp_path / "r").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    refuse(["run", "--out", str(tmp_path)], capsys, "not empty")
    refuse(["pivots", str(tmp_path)], capsys, "holds no run")
    refuse(["show", "scores", str(tmp_path)], capsys, "holds no run")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refuse(["run", "--out", str(tmp_path / "file" / "run")], capsys, "cannot write", "--out")
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        refuse(["run", "--out", str(locked)], capsys, "cannot write", "--out")
