#!/usr/bin/env bash
# pip 23.2.1, which Python 3.11's venv brings, with setuptools 80.9.0: an extra whose name has an underscore is left out.
#
# extras_require={"with_tables": [...]} and `pip install '.[with_tables]'` are expected to belong together, as they are
# written alike. setuptools writes the extra into the package's metadata as `with-tables`; this pip compares what was
# asked for with that letter by letter, warns that the package "does not provide the extra", and installs the package
# without what the extra asks for, with status 0. `.[with-tables]` installs it, also where setup.py has the underscore.
# pip 26.0 takes both spellings.
#
# Seen:  pip 23.2.1  with_tables absent, warned    with-tables present
#        pip 26.0    with_tables present           with-tables present
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/package"
cd "$folder/package"
cat > setup.py <<'PYTHON'
from setuptools import setup

setup(name="a-package-of-nobody", version="1", py_modules=[], extras_require={"with_tables": ["tabulate==0.9.0"]})
PYTHON
printf '[build-system]\nrequires = ["setuptools==80.9.0"]\nbuild-backend = "setuptools.build_meta"\n' > pyproject.toml

tried() { # a version of pip, an extra
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "pip==$1"
    "$folder/venv/bin/python" -m pip install --disable-pip-version-check ".[$2]" > "$folder/said" 2>&1
    warned=$(grep -c "does not provide the extra" "$folder/said" || true)
    "$folder/venv/bin/python" -c 'import tabulate' 2> /dev/null && there=present || there=absent
    echo "$1 $2 $there $((warned > 0))"
}

seen=$(for version in 23.2.1 26.0; do for extra in with_tables with-tables; do tried "$version" "$extra"; done; done)
echo "$seen"
[ "$seen" = "23.2.1 with_tables absent 1
23.2.1 with-tables present 0
26.0 with_tables present 0
26.0 with-tables present 0" ]
