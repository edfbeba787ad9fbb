"""Fine-tuning: labelled questions to a better model.

tables.py     files -> labelled questions
labels.py     labelled questions -> examples whose answers stand in their passages, and a report
features.py   examples -> windows with targets -> batches -> loss
settings.py   how to train
loop.py       transformers' Trainer with these, and checkpoints that survive a kill
measure.py    what would be delivered, scored
finetune.py   all of it: `train`
curve.py      F1 by number of labels
card.py       the model card
"""
