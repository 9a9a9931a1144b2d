#!/bin/sh
# Makes build/bench/venv with an installed, byte-compiled loom: what is measured is a wheel and not this checkout.
#
#   sh bench/set_up.sh [peers]      with `peers` the programs to compare with as well (npm and the package index)
set -eu
cd "$(dirname "$0")/.."
venv=build/bench/venv
python=${PYTHON:-.venv/bin/python}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check -q"
rm -rf build/bench/wheel
$pip wheel . --no-deps -w build/bench/wheel 2>/dev/null || $pip wheel . --no-deps -w build/bench/wheel
$pip install --force-reinstall --no-deps build/bench/wheel/*.whl
$pip install build/bench/wheel/*.whl matplotlib==3.10.3
"$venv/bin/python" -m compileall -q "$venv/lib" || true # some packages carry files that no Python can compile
if [ "${1:-}" = peers ]; then
    "$python" bench/peers/set_up.py
fi
