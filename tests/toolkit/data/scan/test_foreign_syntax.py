"""What other programs read as instructions is found in captions and in prompts, by one
rule."""

from __future__ import annotations

from pathlib import Path

from tests.toolkit.data.conftest import make_dataset, make_image
from toolkit.data.scan.captions import prompt_warnings
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.foreign_syntax import SYNTAX, lines_of, marks_in

FOREIGN = [
    ("a {red|blue} car in the rain", "choices", "{red|blue}"),
    ("a {2$$red|blue|green} car", "choices", "{2$$red|blue|green}"),
    ("a [cat|dog] in the rain", "choices", "[cat|dog]"),
    ("hatsune miku \\(vocaloid\\), solo", "escaped brackets", "\\("),
    ("__colour__ dress, standing", "wildcards", "__colour__"),
    ("a dress, __clothes/summer*__", "wildcards", "__clothes/summer*__"),
    ("(best quality:1.2), a cat", "weights", "(best quality:1.2)"),
    ("a (1girl:.8) and (b:2)", "weights", "(1girl:.8)"),
    ("a (blurred:-0.5) cat", "weights", "(blurred:-0.5)"),
    ("((masterpiece)), a cat", "weights", "((masterpiece))"),
    ("a [cat:dog:0.5] on a mat", "weights", "[cat:dog:0.5]"),
    ("{{masterpiece}}, a cat", "weights", "{{masterpiece}}"),
    ("a cat, [[blurry]]", "weights", "[[blurry]]"),
    ("1.2::red hair::, a cat", "weights", "1.2::red hair::"),
    ("a cat, embedding:EasyNegative", "embeddings", "embedding:EasyNegative"),
    ("a cat\nNegative prompt: blurry", "parameters", "Negative prompt: "),
    (
        "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7",
        "parameters",
        "Steps: 20, Sampler: ",
    ),
    ("a cat in rain --ar 16:9 --v 6", "flags", "--ar"),
    ("1girl, solo ||| smiling", "separators", "|||"),
    ("a cat <lora:detail:0.8>", "LoRAs", "<lora:detail:0.8>"),
    ("a cat <LORA:detail>", "LoRAs", "<LORA:detail>"),
    ("a cat <hypernet:x:1>", "LoRAs", "<hypernet:x:1>"),
    ("a cat BREAK a dog", "BREAK", "BREAK"),
    ("a cat,BREAK\na dog", "BREAK", "BREAK"),
]

OF_MODELS = [
    ("<think>\nIt is asked for.\n</think>\n\nA cat.", "thoughts and tokens", "<think>"),
    ("A cat on a mat.<|im_end|>", "thoughts and tokens", "<|im_end|>"),
    ("<caption>A cat</caption>", "thoughts and tokens", "<caption>"),
    ("[INST] describe [/INST] a cat", "thoughts and tokens", "[INST]"),
    ("I'm sorry, but I can't help with this image.", "refusals", "I'm sorry"),
    ("I’m unable to see the picture", "refusals", "I’m unable"),
    ("As an AI language model, I see a cat", "refusals", "As an AI"),
    ("Sorry, I cannot describe people.", "refusals", "Sorry,"),
    ("I cannot identify the person", "refusals", "I cannot"),
    ("◁think▷hm◁/think▷ a cat", "thoughts and tokens", "◁think▷"),
    ("Ich kann dieses Bild nicht beschreiben.", "refusals", "Ich kann dieses"),
    ("很抱歉，我无法描述这张图片。", "refusals", "很抱歉"),
    ("A cat. Would you like a longer caption?", "introductions and offers", "Would you like a longer caption"),
    ("USER: describe it. ASSISTANT: a cat", "introductions and offers", "USER:"),
    ("The user wants a caption. So: a cat", "introductions and offers", "The user wants"),
    ("Final answer: a cat", "introductions and offers", "Final answer:"),
    ("`a cat`", "Markdown", "`a cat`"),
    ("Here is a caption for the image: a cat", "introductions and offers", "Here is a caption"),
    ("Sure! A cat on a mat", "introductions and offers", "Sure!"),
    ("Here's your prompt:\na cat", "introductions and offers", "Here's your prompt"),
    ("Caption: a cat", "introductions and offers", "Caption:"),
    ("A cat. Let me know if you need more.", "introductions and offers", "Let me know if"),
    ("Error: CUDA out of memory", "error messages", "Error:"),
    ("RuntimeError: CUDA error: device-side assert", "error messages", "RuntimeError: "),
    ("Traceback (most recent call last):", "error messages", "Traceback ("),
    ("None", "error messages", "None"),
    ("a ```cat``` on a mat", "Markdown", "```"),
    ("a **red** cat", "Markdown", "**red**"),
    ("# A cat\non a mat", "Markdown", "# A"),
    ("- a cat\n- a mat", "Markdown", "- a cat\n- "),
]  # fmt: skip

SPELLINGS = [
    "a [red|blue] and [[x]] cat", "((a))", "<lyco:a>", "steps: 2\nSteps: 2, CFG scale: 3",
    "i am unable to", "I'm not able to", "I am afraid", "I apologise", "I do not see", "I don’t", "I won't",
    "As a large language model", "Unfortunately, I cannot", "Please upload it", "No picture was given", "[Your caption",
    "EXCEPTION: x", "fatal code", "Error 404", "null", "NaN", "undefined", "N/A", "CUDA out of memory",
    "rate limit reached", "internal server error", "Bad Gateway", "service unavailable", "Too many requests",
    "timed out",
    *("Certainly:", "Of course.", "Absolutely!", "Okay,", "Alright.", "Great:", "Understood."),
    *("Below is a description", "This is the caption", "Tags:", "Short description: x", "Title :", "**Answer**:"),
    *("Describe the photo", "I hope this helps", "would you like me to", "feel free to ask", "the image you shared"),
    *("here are some tags for", "note: this description", "assistant:", "Output:", "prompt:"),
    *("Human: x", "the user asked", "We need to write", "Would you like a long caption", "Final answer:"),
    *("Es tut mir leid", "Ich kann dieses", "Je suis désolé", "Je ne peux pas", "Lo siento", "No puedo"),
    *("非常抱歉", "对不起", "作为一个ai", "我无法", "申し訳", "◁think▷", "~~~", "`a cat`"),
    *("lyco:a:.5", "(hypernet:a:1)"),
    *("> quoted", "***", "-*-", "*-*", "* a\n* b", "• a\n• b", "1. a\n2. b", "[/INST]", "<end_of_turn>"),
]  # fmt: skip

PLAIN = [
    "I love cats, a sign that says Sorry we are closed, an error message on a screen",
    "none of the cats, a null sign, a man sure of himself, okay sign",
    "here is where the cat sits. This is a photo of a cat",
    "I love you written in the sand, no puedoso, a `quoted` word, users: many, answering: none",
    "a cat - on a mat - at night, #1 fan, a 2 * 3 grid, 5 ** 2, prompt service",
    "image of a caption: in the clouds, the title Tags: is seen",
    "1. a cat, a dog\n- smiling",
    "red_hair, looking_at_viewer, ^_^, o_o, :|, >_<, |_|",
    "a clock (at 12:30), a ratio (16:9), a drawing (scale 1:4)",
    "a man (left), a woman (right), a sign (note: 5)",
    "[trigger], smiling, [name] at night",
    "a sign with COFFEE BREAK and BREAK TIME, a prison break",
    "a text <b>bold</b>, i <3 you, x < y > z",
    "a table | with | bars, {braces}, a path C:\\photos",
    "snake__case, _underlined_, a file __ with gaps __",
    "a year (born:1999)",
    "C++ code, std::vector::size, 16::9, a -- b, a dash --arrow, word embedding: a plot",
    "steps: 20 of them, a sign that says 'negative prompt: none', a {{}} and a [[]]",
    "|| two bars ||, a ruler 1:2:3",
]


def test_instructions_of_other_programs_are_found() -> None:
    for text, kind, first in FOREIGN + OF_MODELS:
        (marks,) = marks_in(["a plain caption", text])
        assert (marks.syntax.name, marks.first, marks.texts) == (kind, first, (1,))
        (line,) = lines_of(text)
        assert line.startswith(repr(first)) and line.endswith(marks.syntax.remedy)


def test_the_signs_of_a_pattern_are_in_all_that_it_finds() -> None:
    texts = [*SPELLINGS, *(text for text, *_ in FOREIGN + OF_MODELS)]
    for text in (*texts, *map(str.upper, texts)):
        kinds = [each.name for each in SYNTAX if each.pattern.search(text)]
        assert [marks.syntax.name for marks in marks_in([text])] == kinds, text
    found = {text for text in SPELLINGS if marks_in([text])}
    assert found == {*SPELLINGS}


def test_what_looks_like_them_and_is_text_is_not() -> None:
    assert [text for text in PLAIN if marks_in([text])] == []


def test_captions_and_prompts_are_told_alike(tmp_path: Path) -> None:
    texts = [text for text, *_ in FOREIGN] + ["a plain caption"]
    for index, text in enumerate(texts):
        make_image(tmp_path / f"{index:02}.png")
        (tmp_path / f"{index:02}.txt").write_text(text)
    (note,) = [
        note
        for note in scan_datasets([make_dataset(tmp_path)], None).notes
        if "other programs" in note
    ]
    assert note.startswith(f"warning: {tmp_path}: 24 of 25 captions (00.png, 01.png, ")
    assert "19.png and 4 more) with '(best quality:1.2)', '<lora:detail:0.8>', " in note
    kinds = (
        "weights (8), LoRAs (3), embeddings (1), parameters (2), flags (1), separators (1), choices (3), "
        "wildcards (2), escaped brackets (1) and BREAK (2)"
    )
    assert f"{kinds} of other programs are plain text here. Remove the weight" in note
    assert "Write a comma instead" in note
    assert "'captions: lines'" in note and note.endswith("Remove BREAK")
    (told,) = prompt_warnings(texts, [])
    of_captions = (
        f"{tmp_path}: 24 of 25 captions{note[note.index(' (') : note.index(') with')]})"
    )
    assert told == note.replace(of_captions, "sample: prompts").replace(
        kinds,
        "weights, LoRAs, embeddings, parameters, flags, separators, choices, wildcards, escaped brackets and BREAK",
    )


def test_a_regularisation_image_is_checked_too(tmp_path: Path) -> None:
    make_image(tmp_path / "a.png", 512, 512)
    (tmp_path / "a.txt").write_text("a (red:1.3) cup")
    notes = scan_datasets([make_dataset(tmp_path, is_reg=True)], None).notes
    assert [note.partition(": ")[2] for note in notes] == [
        f"{tmp_path}: 1 of 1 caption (a.png) with '(red:1.3)': weights (1) of other programs are plain text here. "
        "Remove the weight and its brackets"
    ]


def test_what_models_leave_is_told_with_files_and_never_advised_as_lines(
    tmp_path: Path,
) -> None:
    """Neither line by line nor with words for other programs."""
    texts = ("<think>\nA caption.\n</think>\nA cat", "I'm sorry", "A cat\non a mat")
    for count in (3, 1):
        for index, text in enumerate(texts[-count:]):
            make_image(tmp_path / f"{index}.png")
            (tmp_path / f"{index}.txt").write_text(text)
        notes = scan_datasets([make_dataset(tmp_path)], None).notes
        lines = [note for note in notes if "several lines" in note]
        if count == 3:
            told = (
                f"warning: {tmp_path}: 2 of 3 captions (0.png, 1.png) with '<think>', \"I'm sorry\": thoughts and "
                "tokens (1) and refusals (1) of language models are plain text here. Remove them, and all that is "
                "thought. Write the caption of the image"
            )
            assert told in notes and "'captions: lines'" not in lines[0]
            for file in (*tmp_path.glob("*.png"), *tmp_path.glob("*.txt")):
                file.unlink()
    assert "'captions: lines'" in lines[0]
