"""Deployment folders: what a platform needs to run a model, written with one command and checked as far as it can be offline.

target.py      what a target is: a name, `emit` and `verify`; and what is deployed
folder.py      the folder: the model, the target's files, a README, and deployment.json, which records all of it
wheel.py       the spanqa that is deployed: a wheel of this one, or a published version; the versions of what it needs
render.py      templates to files
container.py   the image that several targets run
checks.py      what several targets check of files that a person may have edited
one file for each target, and its templates under templates/
"""
