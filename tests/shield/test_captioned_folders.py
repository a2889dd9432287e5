"""T2UE with a CLIP of transformers, on folders of pictures with captions, and from the shell."""

import math

import numpy as np
import pytest
import torch
from captioned import shield
from torch.nn import functional as F

from helpers.caption_encoders import LinearEncoders, tiny_generator
from helpers.pictures import contents, make_folder, make_pictures
from unwrite.errors import DataError, ModelError, Notice
from unwrite.nets import TextNoiseGenerator
from unwrite.runs import hash_model
from unwrite.shield import (
    T2UE,
    ClipEncoders,
    FolderPictures,
    GeneratorTraining,
    Protection,
    load_generator,
    protect_folder,
    save_generator,
    train_generator,
)
from unwrite.shield.engine.dual_encoders import MEAN, STD
from unwrite.shield.engine.generator_training import noise_loss

# A real CLIP of transformers, from its configuration


@pytest.fixture(scope="module")
def clip():
    """A tiny CLIPModel with a tokenizer of whole words that holds 12 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<end>", "<unk>", *(f"word{number}" for number in range(40))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<start>", eos_token="<end>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=12,
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 44, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=10,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    return model, tokenizer


def test_a_clip_of_transformers_trains_a_generator_and_protects_by_it(clip, tmp_path):
    model, tokenizer = clip
    before = hash_model(model)
    encoders = ClipEncoders(model, tokenizer)
    assert (encoders.image_size, encoders.most_tokens) == (16, 12)
    assert encoders.scale == pytest.approx(math.exp(model.logit_scale.item()))
    pixels, _ = make_pictures(12, side=20)
    captions = [f"word{row} word{row + 1} word7" for row in range(12)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = TextNoiseGenerator(10, 4, (8, 8, 6))
    how = GeneratorTraining(epochs=2, batch_size=12, lr=2e-2)
    text = F.normalize(encoders.text_features(captions), dim=-1)

    def loss():
        with torch.no_grad():
            small = torch.from_numpy(pixels[:, :, 2:18, 2:18] / 255).float()
            return noise_loss(generator.eval(), encoders, small, text, torch.zeros(12, 4)).item()

    first = loss()
    train_generator(np.tile(pixels, (20, 1, 1, 1)), captions * 20, encoders, how, generator=generator)
    assert loss() < 0.95 * first
    assert hash_model(model) == before
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    save_generator(generator, tmp_path / "generator")
    stored = T2UE(key=3, generator=str(tmp_path / "generator"), text_encoder=str(tmp_path / "clip"))
    given = T2UE(key=3, generator=generator, text_encoder=encoders)
    assert np.allclose(stored.noise_of(captions, 20), given.noise_of(captions, 20), atol=1e-6)
    folder = stored.fit(pixels, captions).save(tmp_path / "kept")
    assert np.array_equal(
        Protection.load(folder, 3).transform(pixels, captions), stored.fit(pixels, captions).transform(pixels, captions)
    )


def test_features_of_a_clip_are_the_projected_ones_of_normalised_pictures_and_of_texts_of_any_padding(clip):
    model, tokenizer = clip
    encoders = ClipEncoders(model, tokenizer)
    pixels = torch.rand(2, 3, 16, 16)
    normal = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        both = model(input_ids=tokenizer(["word1 word2"], return_tensors="pt")["input_ids"], pixel_values=normal)
        assert torch.allclose(F.normalize(encoders.image_features(pixels), dim=-1), both.image_embeds, atol=1e-5)
        padded = encoders.text_features(["word1 word2", "word3 word4 word5 word6"])
        assert torch.allclose(F.normalize(padded[:1], dim=-1), both.text_embeds, atol=1e-5)

    class Processor:
        image_processor = type("Pictures", (), {"image_mean": [0.0] * 3, "image_std": [1.0] * 3})

    Processor.tokenizer = tokenizer
    own = ClipEncoders(model, Processor)
    with torch.no_grad():
        assert torch.equal(own.image_features(pixels), model.get_image_features(pixel_values=pixels).pooler_output)


def test_a_caption_that_is_too_long_is_refused_unless_it_may_be_cut(clip):
    model, tokenizer = clip
    encoders = ClipEncoders(model, tokenizer)
    generator = TextNoiseGenerator(10, 4, (4, 4))
    long = " ".join(f"word{number}" for number in range(11))
    message = r"the caption 'word0 word1 .*\.\.\. has 13 tokens, and the text encoder takes 12. Shorten it, or pass truncation=True"
    pixels, _ = make_pictures(2)
    for call in (
        lambda: T2UE(key=1, generator=generator, text_encoder=encoders).fit(pixels, ["word1", long]),
        lambda: T2UE(key=1, generator=generator, text_encoder=encoders).noise_of([long], 8),
        lambda: train_generator(pixels, [long, "word1"], encoders, generator=generator),
    ):
        with pytest.raises(DataError, match=message):
            call()
    cut = T2UE(key=1, generator=generator, text_encoder=encoders, truncation=True)
    assert np.allclose(cut.noise_of([long], 8), cut.noise_of([long.rsplit(" ", 1)[0]], 8), atol=1e-7)


def test_a_model_that_encodes_no_texts_and_pictures_is_refused(tmp_path):
    from conftest import make_llama, make_tokenizer

    make_llama().save_pretrained(tmp_path / "llama")
    make_tokenizer().save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match=r"llama is a LlamaForCausalLM, which has no text features. Give a CLIP model"):
        ClipEncoders.load(tmp_path / "llama")


# Captions in a folder


def test_a_table_and_files_beside_the_pictures_are_captions_and_class_names_where_asked_for(tmp_path):
    pets = make_folder(tmp_path / "pets")
    names = [FolderPictures(pets).relative(row) for row in range(6)]
    for name in names:
        (pets / name).with_suffix(".txt").write_text(f" seen {name}\n twice ")
    beside = shield().pictures_of(pets)
    assert beside.targets == tuple(f"seen {name} twice" for name in names)
    assert beside.classes == ()
    table = tmp_path / "mine.csv"
    table.write_text("\ufeffFile,Caption\n" + "\n".join(f'{name},"table, {name}"' for name in names), encoding="utf-8")
    assert shield().pictures_of(pets, table).targets == tuple(f"table, {name}" for name in names)
    (pets / "captions.csv").write_text(table.read_text())
    assert shield().pictures_of(pets).targets[0] == f"table, {names[0]}"
    assert shield(mode="class").pictures_of(pets).targets == ("amber",) * 2 + ("blue",) * 2 + ("cyan",) * 2
    assert shield(template="varied").pictures_of(pets).targets[0] == "amber"


def test_pictures_with_captions_may_lie_anywhere_and_a_release_is_that_of_the_arrays(tmp_path):
    source = tmp_path / "pairs"
    pets = make_folder(tmp_path / "pets")
    (source / "deep").mkdir(parents=True)
    (pets / "amber/0.png").rename(source / "one.png")
    (pets / "blue/0.png").rename(source / "deep/two.png")
    (source / "captions.csv").write_text("image,text\none.png,a cat\n./deep/two.png,a dog\n")
    release = protect_folder(shield(), source, tmp_path / "safe")
    assert contents(release.folder).keys() == {"one.png", "deep/two.png", "protection.json"}
    rows = FolderPictures(source, "captions", names=False)
    assert rows.targets == ("a dog", "a cat")
    pixels = rows.pixels([0, 1])
    expected = shield().fit(pixels, rows.targets).transform(pixels, rows.targets)
    safe = FolderPictures(tmp_path / "safe", "captions", source / "captions.csv")
    assert np.array_equal(safe.pixels([0, 1]), expected)
    fitted = shield().fit(source, source / "captions.csv")
    assert np.array_equal(fitted.transform(pixels, rows.targets), expected)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"amber/0.png has no caption: there is neither .*captions.csv nor .*amber/0.txt. Write one of them"),
        ("file,caption\namber/0.png,a cat\n", r"amber/1.png has no caption: .*captions.csv doesn't name it \(5 of 6"),
        ("a,b\n", r"captions.csv has the columns a, b. Its first line must name file and caption"),
        ("", r"captions.csv has the columns none"),
        ("file,caption\namber/0.png,  \n", r"captions.csv, line 2: the caption of amber/0.png is empty"),
        ("file,caption\n,a cat\n", r"captions.csv, line 2: the file is empty"),
        ('file,caption\na,"x', r"captions.csv is no table that can be read"),
    ],
)
def test_a_picture_without_a_caption_is_refused_by_its_file(table, message, tmp_path):
    pets = make_folder(tmp_path / "pets")
    if table is not None:
        (pets / "captions.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        protect_folder(shield(), pets, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


def test_an_empty_file_a_second_caption_and_a_missing_table_are_refused_and_files_of_no_picture_told(tmp_path):
    pets = make_folder(tmp_path / "pets", rows=1)
    (pets / "amber/0.txt").touch()
    with pytest.raises(DataError, match=r"amber/0.txt is empty, and so .*amber/0.png has no caption"):
        shield().pictures_of(pets)
    rows = "".join(f"{colour}/0.png,x\n" for colour in ("amber", "blue", "cyan"))
    table = tmp_path / "t.csv"
    table.write_text(f"file,caption\n{rows}amber/0.png,y\n")
    with pytest.raises(DataError, match=r"amber/0.png has 2 captions, and its noise is made from one. Leave one"):
        shield().pictures_of(pets, table)
    several = FolderPictures(pets, "captions", table, several=True)
    assert several.captions == (("x", "y"), ("x",), ("x",))
    with pytest.raises(DataError, match=r"there is no file .*nowhere.csv"):
        shield().pictures_of(pets, tmp_path / "nowhere.csv")
    table.write_text(f"file,caption\n{rows}dog/9.png,y\n")
    with pytest.warns(Notice, match=r"names 1 files that are no pictures of .* \(first: dog/9.png\)"):
        shield().pictures_of(pets, table)


def test_a_generator_is_trained_on_a_folder_with_several_captions_a_picture(tmp_path):
    pets = make_folder(tmp_path / "pets", side=11)
    table = "".join(f"{name},{text} of {name}\n" for name in contents(pets) for text in ("one", "two"))
    (pets / "captions.csv").write_text(f"file,caption\n{table}")
    how = GeneratorTraining(epochs=1, batch_size=4)
    generator = train_generator(pets, None, LinearEncoders(), how, generator=tiny_generator())
    same = train_generator(pets, pets / "captions.csv", LinearEncoders(), how, generator=tiny_generator())
    assert hash_model(generator) == hash_model(same) != hash_model(tiny_generator())


def test_a_set_of_images_has_its_classes_names_for_captions():
    from unwrite.data import Images

    pixels, labels = make_pictures(6)
    images = Images(pixels.astype(np.float32) / 255, labels, classes=("cat", "dog", "bus"))
    made = shield(mode="class").fit_transform(images)
    expected = shield(mode="class").fit_transform(pixels, ["cat", "dog", "bus"] * 2)
    assert np.array_equal(np.rint(made.pixels.numpy() * 255), expected)


# From the shell


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_the_shell_trains_a_generator_and_protects_by_it_as_the_library_does(clip, tmp_path, capsys, monkeypatch):
    from unwrite.cli import main
    from unwrite.shield.engine import generator_training

    model, tokenizer = clip
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "clip")
    monkeypatch.setattr(
        generator_training, "_default", lambda width, eps: TextNoiseGenerator(width, 4, (6, 4), eps=eps)
    )
    pets = make_folder(tmp_path / "pets")
    table = tmp_path / "mine.csv"
    table.write_text("file,caption\n" + "".join(f"{name},word{row}\n" for row, name in enumerate(contents(pets))))
    given = ["--captions", str(table)]
    training = [
        "shield",
        "train-generator",
        str(pets),
        *given,
        "--encoders",
        str(tmp_path / "clip"),
        "--out",
        str(tmp_path / "g"),
    ]
    main(
        [
            *training,
            "--epochs",
            "2",
            "--batch-size",
            "3",
            "--eps",
            "0.05",
            "--checkpoints",
            str(tmp_path / "checkpoints"),
        ]
    )
    assert "weights for a budget of 0.05, 8 x 8 pixels" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "epoch-1").is_dir()
    generator, told = load_generator(tmp_path / "g")
    assert generator.eps == 0.05
    assert (told["epochs"], told["batch_size"], told["direction"]) == (2, 3, "minimise")
    assert "device" not in told
    with pytest.raises(SystemExit):
        main(training)
    assert "holds a saved generator. Choose another --out, or pass --overwrite to replace it" in capsys.readouterr().err
    made = ["--generator", str(tmp_path / "g"), "--text-encoder", str(tmp_path / "clip"), "--key", "9"]
    main(["shield", "protect", str(pets), "--by", "t2ue", *given, *made, "--out", str(tmp_path / "safe")])
    assert "6 pictures, protected by t2ue" in capsys.readouterr().out
    fields = {"key": 9, "generator": str(tmp_path / "g"), "text_encoder": str(tmp_path / "clip")}
    protect_folder(T2UE(**fields), pets, tmp_path / "again", captions=table)
    first, again = contents(tmp_path / "safe"), contents(tmp_path / "again")
    assert all(first[name] == again[name] for name in contents(pets))
    with pytest.raises(SystemExit):
        main(["shield", "protect", str(pets), "--by", "t2ue", *made, "--out", str(tmp_path / "none")])
    assert "amber/0.png has no caption" in capsys.readouterr().err
