"""The table of faults: what is planted, where it must be caught, and in which words."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import torch

from tests.audit import code_faults as code
from tests.audit import data_faults as data
from tests.audit.running import Fault
from tests.conftest import CAPTIONS
from tests.train.runs import train

TRAINS = {"preflight": "off", "max_steps": 20}
"""Past pre-flight, as when something breaks in the middle of a run."""
LONG = {"preflight": "off", "max_steps": 260, "logging_steps": 10, "controls": False}


def on_purpose(faults: str) -> dict[str, Any]:
    return {"experiment_faults": faults, "experiment_faults_confirmed": True}


def saved_without_optimizer(scene: SimpleNamespace) -> dict[str, Any]:
    """A run whose checkpoint-2 has weights alone, to go on from."""
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    train(scene.assets, scene.run, **options)
    for step in (4, 6):
        shutil.rmtree(scene.run / f"checkpoint-{step}", ignore_errors=True)
    return {**options, "resume_from_checkpoint": "auto"}


def evaluated_on_copies(scene: SimpleNamespace) -> dict[str, Any]:
    """The evaluation clips are byte copies of training clips, under other names."""
    import json

    records = json.loads(scene.assets.video_json.read_text())[:2]
    clips = scene.folder / "clips"
    for i, r in enumerate(records):
        shutil.copy(clips / r["video"], clips / f"held{i}.mp4")
        r |= {"id": f"held{i}", "video": f"held{i}.mp4"}
    (scene.folder / "held.json").write_text(json.dumps(records))
    return {"eval_data_path": scene.folder / "held.json"}


CODE = [
    # Labels
    Fault(
        "visual tokens are targets",
        "code",
        "refused",
        r"labels, video: visual tokens are targets",
        plant=code.relabel(lambda ids, labels: ids),
        quick=True,
    ),
    Fault(
        "the end of text is masked",
        "code",
        "refused",
        r"EOS is not supervised exactly once",
        plant=code.relabel(code.mask(-1)),
        quick=True,
    ),
    Fault(
        "labels shifted by one",
        "code",
        "refused",
        r"labels are shifted by one",
        plant=code.relabel(lambda ids, labels: torch.cat([labels[1:], labels[-1:]])),
    ),
    Fault(
        "a word of each caption is masked", "code", "refused", r"words are masked", plant=code.relabel(code.mask(-3))
    ),
    Fault(
        "the loss does not shift",
        "code",
        "refused",
        r"cross-entropy of its logits|sees the token that it must",
        plant=code.unshifted_loss,
    ),
    Fault(
        "the training collator masks the last words",
        "code",
        "refused",
        r"training collator|labels",
        plant=code.training_collator(code.last_word_masked),
    ),
    Fault(
        "texts of the neighbouring record",
        "code",
        "refused",
        r"supervise other words than their record has",
        plant=code.texts_of_the_neighbour,
    ),
    Fault(
        "ids exchanged for others",
        "code",
        "refused",
        r"supervise other words than their record has",
        plant=code.words_exchanged,
    ),
    # What trains
    Fault(
        "head frozen, and with it the vocabulary",
        "code",
        "refused",
        r"wte\.weight is frozen.*vocabulary cannot",
        plant=code.frozen_head,
        quick=True,
    ),
    Fault(
        "projector in another part's group",
        "code",
        "refused",
        r"has learning rate .* instead of",
        plant=code.after_optimizer(code.misfile),
        flags={"mm_projector_lr": 3e-3},
    ),
    Fault(
        "optimiser lacks a tensor",
        "code",
        "refused",
        r"optimiser: mm_projector\S+ is in 0 groups",
        plant=code.after_optimizer(code.forget),
    ),
    Fault(
        "optimiser holds copies of the projector",
        "code",
        "refused",
        r"mm_projector.*optimiser does not hold it",
        plant=code.after_optimizer(code.copies_of_the_projector, real=True),
        quick=True,
    ),
    Fault(
        "embeddings replaced after the optimiser was made",
        "code",
        "refused",
        r"wte.*optimiser does not hold it",
        plant=code.after_optimizer(code.replace_embeddings, real=True),
    ),
    Fault(
        "head untied after pre-flight",
        "code",
        "refused",
        r"head is no longer tied",
        plant=code.after_optimizer(code.untie_head, real=True),
    ),
    Fault(
        "word embeddings get no gradient, positions do",
        "code",
        "alarm",
        r"wte",
        plant=code.after_optimizer(code.dead_embeddings, real=True),
        flags=TRAINS,
        quick=True,
    ),
    Fault(
        "one tensor of a group stands still",
        "code",
        "alarm",
        r"h\.1\.ln_1",
        plant=code.after_optimizer(code.dead_layer_norm, real=True),
        flags=TRAINS,
    ),
    # Vision
    Fault(
        "fast stream overwritten by the slow one",
        "code",
        "refused",
        r"fast stream is never computed",
        plant=code.fast_stream_overwritten,
        quick=True,
    ),
    Fault(
        "slow stream overwritten by the fast one",
        "code",
        "refused",
        r"slow stream is never computed",
        plant=code.slow_stream_overwritten,
    ),
    Fault(
        "fast stream lost in the middle of a run",
        "code",
        "alarm",
        r"resampler fast",
        plant=code.fast_stream_overwritten,
        flags=TRAINS,
    ),
    Fault(
        "vision rows detached",
        "code",
        "refused",
        r"gradients, projector: no gradient reaches",
        plant=code.vision_detached,
    ),
    Fault(
        "vision rows not written",
        "code",
        "refused",
        r"leave the caption's logits as they are|does not (reach|move)",
        plant=code.rows_not_written,
        quick=True,
    ),
    Fault(
        "visual positions masked",
        "code",
        "refused",
        r"leave the caption's logits as they are|does not (reach|move)",
        plant=code.vision_masked,
    ),
    Fault(
        "a visual token is not registered",
        "code",
        "refused",
        r"<slow_vid_end> becomes \[\d+\]",
        plant=code.token_not_registered,
    ),
    Fault(
        "every sample sees the batch's first video",
        "code",
        "refused",
        r"(?i)sample|own video",
        plant=code.first_video_for_all,
        quick=True,
    ),
    Fault(
        "in training every sample sees its neighbour's video",
        "code",
        "refused",
        r"(?i)sample|own video",
        plant=code.videos_rolled_in_training,
        quick=True,
    ),
    Fault("blind in training, seeing in evaluation", "code", "refused", r"(?i)train", plant=code.blind_in_training),
    Fault(
        "videos of a training batch in another order",
        "code",
        "refused",
        r"(?i)layout|sample",
        plant=code.training_collator(code.videos_reversed),
    ),
    Fault(
        "one latent reaches nothing",
        "code",
        "refused",
        r"latent rows are the same whatever the clip",
        plant=code.one_latent_dead,
    ),
    Fault("only the first frame is used", "code", "refused", r"(?i)frame", plant=code.first_frame_alone),
    Fault(
        "weights that are not finite",
        "code",
        "refused",
        r"output of mm_projector\.0 is not finite",
        plant=code.infinite_weight,
    ),
    # Attention and layout
    Fault(
        "the model sees the next token",
        "code",
        "refused",
        r"moves with a word that comes later",
        plant=code.sees_the_future,
        quick=True,
    ),
    Fault(
        "samples of a packed row see each other",
        "code",
        "refused",
        r"layout of batches",
        plant=code.samples_of_a_row_see_each_other,
        quick=True,
    ),
    Fault(
        "mask made from the pad id where pad is EOS",
        "code",
        "test",
        r"",
        plant=code.attention_mask_from_the_pad_id,
        test="tests/data/test_collator.py",
    ),
    # Features
    Fault(
        "features that are not finite",
        "code",
        "refused",
        r"features of v0 are not finite",
        plant=code.features(code.nan_in_clip0),
    ),
    Fault(
        "all features equal",
        "code",
        "refused",
        r"different clips have the same features",
        plant=code.features(lambda cache, path, found: torch.ones_like(found)),
    ),
    Fault(
        "a clip with another's features, the first",
        "code",
        "refused",
        r"are not those of .*clip0\.mp4",
        plant=code.swapped_clips("clip0", "clip1"),
        quick=True,
    ),
    Fault(
        "a clip with another's features, a later one",
        "code",
        "refused",
        r"are not those of .*clip4\.mp4",
        plant=code.swapped_clips("clip4", "clip5"),
    ),
    # Steps
    Fault(
        "learning rate is not the schedule's",
        "code",
        "alarm",
        r"(?i)learning rate .*schedule",
        plant=code.schedule_never_applied,
        flags=TRAINS,
    ),
    Fault(
        "accumulated losses are not normalised",
        "code",
        "alarm",
        r"(?i)logged loss|loss .* nats",
        plant=code.accumulation_not_normalised,
        flags={**TRAINS, "gradient_accumulation_steps": 3},
    ),
    Fault(
        "gradients are not set back",
        "code",
        "test",
        r"",
        plant=code.gradients_never_zeroed,
        test="tests/train/monitor/test_invariants.py",
    ),
    Fault(
        "sampler repeats a record",
        "code",
        "alarm",
        r"(?i)record|epoch",
        plant=code.sampler_order(lambda order: [order[0], order[0], *order[2:]]),
        flags=TRAINS,
    ),
    Fault(
        "sampler drops records",
        "code",
        "alarm",
        r"(?i)record|epoch",
        plant=code.sampler_order(lambda order: order[:-2]),
        flags=TRAINS,
    ),
    Fault(
        "checkpoint holds another projector",
        "code",
        "alarm",
        r"(?i)checkpoint",
        plant=code.projector_not_saved,
        flags={"save_strategy": "steps", "save_steps": 2},
    ),
    Fault(
        "streams swapped",
        "code",
        "test",
        r"",
        plant=code.streams_swapped,
        test="tests/model/test_resampler.py",
        quick=True,
    ),
]

FLAGS = [
    Fault(
        "learning rate 0",
        "flags",
        "refused",
        r"learning rate 0|learning_rate",
        flags={"learning_rate": 0.0},
        quick=True,
    ),
    Fault("learning rate nan", "flags", "refused", r"--learning_rate nan", flags={"learning_rate": "nan"}),
    Fault(
        "projector's learning rate 0",
        "flags",
        "refused",
        r"mm_mlp_adapter\) has learning rate 0|mm_projector_lr",
        flags={"mm_projector_lr": 0.0},
    ),
    Fault(
        "a part with a thousandth of the learning rate",
        "flags",
        "warned",
        r"(?i)thousand",
        flags={"mm_projector_lr": 1e-6},
    ),
    Fault(
        "a warm-up longer than the run",
        "flags",
        "warned",
        r"only 5% of the learning rate|%",
        flags={"warmup_steps": 100},
    ),
    Fault(
        "a guessing language model is frozen",
        "flags",
        "refused",
        r"guesses and is frozen",
        flags={"mm_tunable_parts": "mm_mlp_adapter"},
    ),
    Fault(
        "the experiment's faults without confirmation",
        "flags",
        "refused",
        r"breaks the training on purpose",
        flags={"experiment_faults": "unmasked_labels"},
    ),
    Fault(
        "the experiment's faults, past pre-flight",
        "flags",
        "alarm",
        r"visual targets",
        flags={**TRAINS, **on_purpose("unmasked_labels")},
    ),
    Fault("0 steps", "flags", "refused", r"--max_steps", flags={"max_steps": 0}, quick=True),
    Fault(
        "negative accumulation",
        "flags",
        "refused",
        r"--gradient_accumulation_steps -2",
        flags={"gradient_accumulation_steps": -2},
        quick=True,
    ),
    Fault("negative length", "flags", "refused", r"--model_max_length -1", flags={"model_max_length": -1}, quick=True),
    Fault("negative seed", "flags", "refused", r"--seed -1", flags={"seed": -1}),
    Fault(
        "batches of 0", "flags", "refused", r"--per_device_train_batch_size 0", flags={"per_device_train_batch_size": 0}
    ),
    Fault("logging every 0 steps", "flags", "refused", r"--logging_steps 0", flags={"logging_steps": 0}),
    Fault(
        "saving every 2.5 steps",
        "flags",
        "refused",
        r"--save_steps 2\.5",
        flags={"save_strategy": "steps", "save_steps": 2.5},
    ),
    Fault("0 epochs", "flags", "refused", r"--num_train_epochs 0", flags={"max_steps": -1, "num_train_epochs": 0}),
    Fault("bf16 and fp16", "flags", "refused", r"(?i)bf16.*fp16|fp16.*bf16", flags={"bf16": True, "fp16": True}),
    Fault(
        "fewer records than a batch, and they are dropped",
        "flags",
        "refused",
        r"(?i)drop_last",
        flags={"per_device_train_batch_size": 8, "dataloader_drop_last": True},
        quick=True,
    ),
    Fault(
        "going on from a checkpoint of weights alone",
        "flags",
        "refused",
        r"(?i)save_only_model|optimi[sz]er",
        prepare=saved_without_optimizer,
    ),
    Fault("an unknown flag", "flags", "refused", r"--learing_rate", flags={"learing_rate": 1e-3}),
    Fault(
        "too high a learning rate",
        "flags",
        "end",
        r"plateau|spike|finite",
        flags={**LONG, "learning_rate": 5.0, "max_grad_norm": 0.0},
    ),
    Fault("weight decay 100", "flags", "end", r"plateau", flags={**LONG, "weight_decay": 100.0, "learning_rate": 1e-2}),
    Fault(
        "nearly everything dropped",
        "flags",
        "end",
        r"plateau|spike",
        plant=code.made_model(code.heavy_dropout),
        flags={**LONG, "learning_rate": 1e-3},
    ),
]

DATA = [
    Fault(
        "clips under a key that is not read",
        "data",
        "refused",
        r"video_path",
        data=data.one(lambda r: r.update(video_path=r.pop("video"))),
        quick=True,
    ),
    Fault(
        "the caption stands before its video",
        "data",
        "refused",
        r"no word follows the last placeholder",
        data=data.one(
            lambda r: r.update(
                conversations=[{"from": "gpt", "value": CAPTIONS[0]}, {"from": "human", "value": "<video>"}]
            )
        ),
        quick=True,
    ),
    Fault(
        "a placeholder in an answer",
        "data",
        "refused",
        r"(?i)answer",
        data=data.one(
            lambda r: r.update(
                conversations=[
                    {"from": "human", "value": "Descrivi."},
                    {"from": "gpt", "value": "Il tag <video> di HTML."},
                ]
            )
        ),
    ),
    Fault("no placeholder", "data", "refused", r"(?i)<video>", data=data.prompt("Descrivi.")),
    Fault("two placeholders, one clip", "data", "refused", r"(?i)<video>", data=data.prompt("<video> <video>")),
    Fault(
        "a caption of invisible characters",
        "data",
        "refused",
        r"(?i)empty caption",
        data=data.one(lambda r: r["conversations"][1].update(value="\u200b\ufeff")),
        quick=True,
    ),
    Fault(
        "a visual token in a caption",
        "data",
        "refused",
        r"(?i)reserved",
        data=data.one(lambda r: r["conversations"][1].update(value="Un <vid_patch> gatto.")),
    ),
    Fault(
        "captions that are the word nan",
        "data",
        "warned",
        r"(?i)nan",
        data=data.one(lambda r: r["conversations"][1].update(value="nan")),
    ),
    Fault("two records of one id", "data", "refused", r"(?i)duplicate id", data=data.one(lambda r: r.update(id="v1"))),
    Fault("a clip that is not there", "data", "refused", r"(?i)missing file", data=data.named("gone.mp4")),
    Fault("a path with a space at its end", "data", "refused", r"clip0\.mp4", data=data.named("clip0.mp4 ")),
    Fault("a clip outside its folder", "data", "refused", r"(?i)outside", data=data.named("../clip0.mp4")),
    Fault("a clip cut short", "data", "refused", r"(?i)cut short|cannot be opened", data=data.cut_clip, quick=True),
    Fault("a text file named as a clip", "data", "refused", r"clip0\.mp4", data=data.text_file),
    Fault("a playlist named as a clip", "data", "refused", r"list\.m3u8", data=data.playlist),
    Fault("PostScript named as a picture", "data", "refused", r"p\.jpg", data=data.postscript),
    Fault("an image above 89 megapixels", "data", "refused", r"(?i)big\.png.*pixel", data=data.invisible_image),
    Fault(
        "a segment that is reversed",
        "data",
        "refused",
        r"(?i)split|segment",
        data=data.one(lambda r: r.update(meta={"split": [5, 2]})),
    ),
    Fault(
        "segments written in seconds",
        "data",
        "warned",
        r"motion in clips: .*one frame is chosen",
        data=data.splits_in_seconds,
        quick=True,
    ),
    Fault("still clips", "data", "warned", r"motion in clips: .*a picture that stands", data=data.still_clips),
    Fault("black clips", "data", "warned", r"motion in clips: .*one colour", data=data.black_clips),
    Fault("one content under all names", "data", "warned", r"(?i)same|identical|equal", data=data.copies_of_one_clip),
    Fault(
        "mojibake",
        "data",
        "warned",
        r"(?i)Ã|mojibake",
        data=data.answers(lambda text, i: f"PerchÃ© {text} CittÃ ."),
        quick=True,
    ),
    Fault(
        "the answer stands in the prompt",
        "data",
        "warned",
        r"(?i)prompt",
        data=lambda records, folder: [
            {
                **r,
                "conversations": [
                    {"from": "human", "value": f"<video> {r['conversations'][1]['value']}"},
                    r["conversations"][1],
                ],
            }
            for r in records
        ],
    ),
    Fault("one caption for all", "data", "refused", r"captions", data=data.one_caption),
    Fault(
        "evaluation on byte copies of training clips",
        "data",
        "warned",
        r"(?i)held-out",
        data=lambda records, folder: records,
        prepare=evaluated_on_copies,
    ),
    Fault(
        "all captions with the wrong clips, no evaluation set",
        "data",
        "end",
        r"(?i)look again",
        data=data.many(8, lambda i: (i + 3) % 8),
        flags={"run_report": True},
    ),
]

FAULTS = [*CODE, *FLAGS, *DATA]
