"""One contender of `side_by_side.py`, in a process (and, for transformers 4.57, an environment) of its own.

Reads one JSON object a line: {"questions": [[question, context], ...]}. Answers {"seconds": s, "answers": [text, ...]}.
Only the answering is timed, from texts to texts; of a forward pass alone, only that. It imports nothing that its kind does
not need.
"""

import json
import sys
import time


def transformers_pipeline(options):
    """transformers 4.57's pipeline, with the settings of SQuAD 2.0."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline

    torch.set_num_threads(options["threads"])
    tokenizer = AutoTokenizer.from_pretrained(options["model"], model_max_length=512)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model = AutoModelForQuestionAnswering.from_pretrained(options["model"], dtype=torch.float32)
    answer = pipeline("question-answering", model=model, tokenizer=tokenizer, device=-1)
    settings = {"batch_size": options["batch_size"], "handle_impossible_answer": True, "max_answer_len": 30}

    def run(questions):
        texts, contexts = [q for q, _ in questions], [c for _, c in questions]
        found = answer(question=texts, context=contexts, **settings)
        found = [found] if isinstance(found, dict) else found  # of a single question
        if options.get("scores"):
            return [(each["answer"], each["score"]) for each in found]
        return [each["answer"] for each in found]

    return run


def transformers_loop(options):
    """A plain loop over transformers 5: pairs encoded, padded (to 384, or to the longest of 32), best span of each."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    torch.set_num_threads(options["threads"])
    tokenizer = AutoTokenizer.from_pretrained(options["model"], model_max_length=512)
    model = AutoModelForQuestionAnswering.from_pretrained(options["model"], dtype=torch.float32).eval()
    padding = "max_length" if options["fixed"] else "longest"

    def run(questions):
        best = []
        for i in range(0, len(questions), 32):
            pairs = questions[i : i + 32]
            batch = tokenizer(
                [q for q, _ in pairs], [c for _, c in pairs], padding=padding, truncation="only_second", max_length=384,
                stride=128, return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt",
            )  # fmt: skip
            owners, offsets = batch.pop("overflow_to_sample_mapping"), batch.pop("offset_mapping")
            with torch.inference_mode():
                output = model(**batch)
                passage = (batch.token_type_ids == 1) & (batch.input_ids != tokenizer.sep_token_id)
                start, end = (x.masked_fill(~passage, -1e4) for x in (output.start_logits, output.end_logits))
                band = torch.ones(start.shape[1], start.shape[1], dtype=torch.bool).triu().tril(29)
                scores = (start[:, :, None] + end[:, None]).masked_fill_(~band, -1e4).flatten(1)
                places = scores.argmax(1)
                margins = scores.gather(1, places[:, None])[:, 0] - output.start_logits[:, 0] - output.end_logits[:, 0]
            found = {}
            for w, (owner, place, margin) in enumerate(
                zip(owners.tolist(), places.tolist(), margins.tolist(), strict=True)
            ):
                if margin > found.get(owner, (-1e9,))[0]:
                    first, last = divmod(place, start.shape[1])
                    text = pairs[owner][1][int(offsets[w, first, 0]) : int(offsets[w, last, 1])]
                    found[owner] = (margin, text if margin >= 0 else "")
            best += [found[j][1] for j in range(len(pairs))]
        return best

    return run


def spanqa_reader(options):
    """spanqa, by its public call."""
    reader = _load(options)
    return lambda questions: [answer.text for answer in reader.ask_many(questions)]


def spanqa_forward(options):
    """The forward pass of spanqa alone, over batches made beforehand; the answers are the seconds that it took."""
    from spanqa.backends.base import BATCH_TOKENS
    from spanqa.batches import pack, plan_batches
    from spanqa.windows import make_windows

    reader = _load(options)
    tokenizer = reader.checkpoint.tokenizer

    def run(questions):
        windows = [
            window
            for question, context in questions
            for window in make_windows(
                tokenizer.encode(question), tokenizer.encode_passage(context), tokenizer.template, reader.windows
            )
        ]
        plan = plan_batches(list(map(len, windows)), reader.layout, BATCH_TOKENS)
        batches = [pack([[windows[i] for i in row] for row in rows]) for rows in plan]
        begin = time.perf_counter()
        for batch in batches:
            reader.backend.forward(batch)
        return [str(time.perf_counter() - begin)]

    return run


def _load(options):
    from spanqa import Reader

    given = {name: options[name] for name in ("backend", "dtype", "layout", "threads") if options.get(name) is not None}
    if given["backend"] in ("numpy", "jax"):
        del given["threads"]
    return Reader.load(options["model"], **given)


def matmul(options):
    """The machine's own rate: torch.matmul of 2048 x 1024 x 4096, in GFLOP/s, as the only answer."""
    import torch

    torch.set_num_threads(options["threads"])
    dtype = getattr(torch, options["dtype"])
    a, b = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)

    def run(_):
        rates = []
        for _ in range(15):
            begin = time.perf_counter()
            torch.matmul(a, b)
            rates.append(2 * 2048 * 1024 * 4096 / (time.perf_counter() - begin) / 1e9)
        return [str(sorted(rates)[len(rates) // 2])]

    return run


KINDS = {
    each.__name__: each for each in (transformers_pipeline, transformers_loop, spanqa_reader, spanqa_forward, matmul)
}


def main() -> None:
    options = json.loads(sys.argv[1])
    run = KINDS[options["kind"]](options)
    reply, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        questions = [tuple(pair) for pair in json.loads(line)["questions"]]
        begin = time.perf_counter()
        answers = run(questions)
        seconds = time.perf_counter() - begin
        if options["kind"] == "spanqa_forward":
            seconds = float(answers.pop())
        print(json.dumps({"seconds": seconds, "answers": answers}), file=reply, flush=True)


if __name__ == "__main__":
    main()
