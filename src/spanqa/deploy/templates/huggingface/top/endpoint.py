#!/usr/bin/env python3
"""Show the request that creates the endpoint of endpoint.json, and send it with --create. An endpoint that runs is billed.

    ./endpoint.py [--file container/endpoint.json] [--create]

pip install 'huggingface_hub>=2.4', and hf auth login.
"""

import argparse
import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, hf_api


class Shown(Exception):
    """A request that is complete, and is not sent."""


class Connection:
    """In the place of the client's own."""

    def post(self, url, *, headers, json):
        raise Shown({"url": url, "json": json})


def main():
    """Show it, or send it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("endpoint.json"))
    parser.add_argument("--create", action="store_true", help="send it")
    given = parser.parse_args()
    arguments = json.loads(given.file.read_text("utf-8"))
    arguments.setdefault("namespace", arguments["repository"].partition("/")[0])
    if not given.create:
        hf_api.get_session = Connection
        try:
            HfApi(token=False).create_inference_endpoint(**arguments)
        except Shown as shown:
            print(json.dumps(shown.args[0], indent=2))
        return
    if "YOUR-" in json.dumps(arguments):
        sys.exit(f"{given.file} still has a name to fill in: look for YOUR-.")
    endpoint = HfApi().create_inference_endpoint(**arguments)
    print(f"{endpoint.name}: {endpoint.status}. Wait for it: hf endpoints describe {endpoint.name}")


if __name__ == "__main__":
    main()
