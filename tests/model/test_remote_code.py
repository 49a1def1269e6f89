"""A checkpoint opens with transformers alone, where this package is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llava.eval.captioning import Captioner
from llava.model.builder import add_coordinate_tokens
from llava.model.processor import VisionCausalLMProcessor
from llava.model.remote_code import flattened, remote_code

ALONE = """
import json, sys
sys.modules["llava"] = sys.modules["av"] = None  # What an import finds of a package that is not installed.
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, again, clip = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
del sys.modules["av"]
inputs = processor(videos=clip)
ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist()
model.save_pretrained(again)
processor.save_pretrained(again)
second = AutoModelForImageTextToText.from_pretrained(again, trust_remote_code=True).eval()
same = bool((second(**inputs, use_cache=False).logits == model(**inputs).logits).all())
options = {"model": folder, "trust_remote_code": True}
words = pipeline("text-generation", **options)("Un gatto", max_new_tokens=3, do_sample=False)
seen = pipeline("image-text-to-text", **options)(Image.new("RGB", (60, 40)), text="<image> Un", max_new_tokens=3)
asked = "<video> Che succede in {<TEMP-INPUT><TEMP-INPUT>}?"
asked = processor(videos=clip, text=asked, variables={"temporal_input_locations": [0.2, 0.5]})
told = [round(number, 4) for number in asked["coordinates"][0].tolist() if number >= 0]
answer = model.generate(**asked, max_new_tokens=4, do_sample=False)[0, asked["input_ids"].shape[1]:].tolist()
print(json.dumps({"told": told, "answer": answer, "ids": ids, "same": same, "module": type(second).__module__,
                  "words": words[0]["generated_text"], "seen": seen[0]["generated_text"]}))
"""


def test_a_checkpoint_opens_where_the_package_is_not(build, tokenizer, assets, tmp_path):
    model = build(storage="checkpoint")
    add_coordinate_tokens(tokenizer, model)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    clip = assets.clips / "clip1.mp4"
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "home")}
    found = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "run", tmp_path / "again", clip],
        env=outside, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "deprecated" not in found.stderr, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    here = Captioner.from_pretrained(tmp_path / "run", device="cpu")
    here.coordinate_choice = "argmax"
    assert tokenizer.decode(said["ids"], skip_special_tokens=True).strip() == here([clip], max_new_tokens=8)[0]
    assert said["same"] and said["module"].startswith("transformers_modules.again")
    assert said["told"] == [0.2, 0.5] and said["answer"] == _answered(here, clip)
    assert said["words"].startswith("Un gatto") and "Un" in said["seen"]
    assert str(assets.tower.parent) not in (tmp_path / "run" / "config.json").read_text()


def _answered(captioner, clip):
    """What the model writes of the same question here."""
    processor = VisionCausalLMProcessor(
        captioner.tokenizer, captioner.model.config.video_spec, captioner.model.config.mm_processor
    )
    text = "<video> Che succede in {<TEMP-INPUT><TEMP-INPUT>}?"
    inputs = processor(videos=clip, text=text, variables={"temporal_input_locations": [0.2, 0.5]})
    ids = captioner.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_entry_names_the_class(build):
    source = remote_code(type(build(vision=False)))["modeling_llava.py"]
    assert 'LlavaGPT2ForCausalLM = causal_lm_class("llava_gpt2")' in source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import math\nfrom torch import nn\n", "import math\nfrom torch import nn\n"),
        ("from llava.constants import ASIDE as x\n", "from .llava_constants import ASIDE as x\n"),
        (
            "def f():\n    import peft\n",
            "def f():\n    try:\n        import peft\n    except ImportError:\n        raise\n",
        ),
        ('OWN = "llava.model.splice"\n', 'OWN = f"{__package__}.llava_model_splice"\n'),
        (
            "from llava.constants import (\n    ASIDE,\n    IGNORE_INDEX,\n)\n",
            "from .llava_constants import ASIDE as ASIDE\nfrom .llava_constants import IGNORE_INDEX as IGNORE_INDEX\n",
        ),
    ],
)
def test_imports_become_flat(source, expected):
    assert flattened(source) == expected


def test_a_module_that_is_imported_whole_is_found():
    text = flattened("from llava import foreign\n")
    assert "from .llava_foreign import __name__ as _" in text and "foreign = _sys.modules" in text
