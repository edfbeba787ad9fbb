"""Batch jobs over files, and more than one machine.

places.py      what a file's name stands for, and its bytes
rows.py        a file's rows, one at a time: JSON Lines, CSV, Parquet
questions.py   a row's questions and texts            texts.py   questions of many texts
answering.py   a chunk's answers, by one reader
outputs.py     answered rows to the output's format
job.py         chunks; what is done survives anything
batch.py       all of it: one job from its files to its file
ray_fleet.py, ray_actors.py   the same chunks on many machines            ray_data.py   a stage for pipelines of Ray Data
"""

from spanqa.scale.answering import AnswerRule, answer_chunks
from spanqa.scale.batch import Input, Summary, rows_input, run_batch, texts_input
from spanqa.scale.places import Place, place_of
from spanqa.scale.ray_actors import ray_actors
from spanqa.scale.ray_data import AnswerRows
from spanqa.scale.ray_fleet import Fleet
from spanqa.scale.rows import delimiter_among

__all__ = [
    "AnswerRows",
    "AnswerRule",
    "Fleet",
    "Input",
    "Place",
    "Summary",
    "answer_chunks",
    "delimiter_among",
    "place_of",
    "ray_actors",
    "rows_input",
    "run_batch",
    "texts_input",
]
