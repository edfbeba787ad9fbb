"""Fine-tuning: labelled questions to a better model.

recipe.py     the whole recipe: files of labelled questions -> a tuned model, or a learning curve
labels.py     labelled questions -> examples whose answers are in their passages, and a report
settings.py   how to train
targets.py    examples -> training windows
teacher.py    training windows -> the same with a larger model's logits, read once and kept on disk
objective.py  training windows -> batches and their loss
loop.py       transformers' Trainer with an objective, and checkpoints that survive a kill
best.py       the best model so far
run.py        one training run
curve.py      F1 by number of labels
card.py       the model card
"""
