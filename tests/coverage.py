#!/usr/bin/python3
"""Print the line coverage that gcov finds in a build folder: a line for each source file, and for each folder.

    coverage.py BUILD [FILE...]     FILE: also print the lines of these that were never run

A file that is compiled several times, as the CPU's kernels are, is counted once: a line was run if it was in any.
"""
import collections
import json
import os
import subprocess
import sys

FOLDERS = ("daemon/", "gpu/", "model/", "protocol/")


def read(build):
    """{path: {line: times run}} of the sources."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    data = [os.path.join(folder, name) for folder, _, names in os.walk(os.path.abspath(build)) for name in names
            if name.endswith(".gcda")]
    lines = collections.defaultdict(collections.Counter)
    output = subprocess.run(["gcov", "--json-format", "--stdout", *data], cwd=build, capture_output=True, check=True)
    for document in output.stdout.splitlines():
        document = json.loads(document)
        for file in document["files"]:
            path = os.path.relpath(os.path.join(document["current_working_directory"], file["file"]), root)
            if path.startswith(FOLDERS):
                for line in file["lines"]:
                    lines[path][line["line_number"]] += line["count"]
    return lines


def show(name, counts):
    run = sum(map(bool, counts))
    print(f"{name:32} {len(counts):6} lines {100 * run / len(counts):6.1f}%")


def main():
    lines = read(sys.argv[1])
    for path in sorted(lines):
        show(path, lines[path].values())
    for folder in FOLDERS:
        counts = [n for path in lines if path.startswith(folder) for n in lines[path].values()]
        if counts:
            show(folder, counts)
    show("all", [n for path in lines for n in lines[path].values()])
    for path in sys.argv[2:]:
        print(path, "never ran:", *(line for line, n in sorted(lines[path].items()) if not n))


if __name__ == "__main__":
    main()
