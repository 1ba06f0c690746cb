#!/usr/bin/env bash
# Writes jaxmeta/_proto/*_pb2.py and *_pb2.pyi from the .proto sources.
# With --check it writes nothing, and fails with a diff if they are not what it would write.
set -euo pipefail

cd "$(dirname "$0")/.."

# protoc 25 (grpcio-tools 1.62) is the newest whose output runs on protobuf 4.25 to 7 alike:
# newer ones write a check that the runtime is not older than the generator.
REQUIREMENTS=("grpcio-tools==1.62.3" "setuptools<81")
VENV=${JAXMETA_PROTOS_VENV:-.venv-protos}

# grpcio-tools 1.62 has wheels up to Python 3.12.
find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.11 python3.12; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] > (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "generate.sh: needs Python 3.12 or older; name one in the variable PYTHON" >&2
  return 1
}

if [[ ! -f "$VENV/.installed" || "$0" -nt "$VENV/.installed" ]]; then
  python=$(find_python)
  "$python" -m venv --clear "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${REQUIREMENTS[@]}"
  touch "$VENV/.installed"
fi

generate_into() {
  "$VENV/bin/python" -m grpc_tools.protoc --proto_path=protos \
    --python_out="$1" --pyi_out="$1" protos/jaxmeta/_proto/*.proto
}

if [[ "${1:-}" == "--check" ]]; then
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  generate_into "$fresh"
  if ! diff --recursive --unified --exclude=__init__.py --exclude=__pycache__ \
    jaxmeta/_proto "$fresh/jaxmeta/_proto"; then
    echo "jaxmeta/_proto is not what the .proto sources say; run protos/generate.sh" >&2
    exit 1
  fi
  echo "jaxmeta/_proto is up to date"
elif [[ $# -eq 0 ]]; then
  rm -f jaxmeta/_proto/*_pb2.py jaxmeta/_proto/*_pb2.pyi
  generate_into .
else
  echo "usage: protos/generate.sh [--check]" >&2
  exit 2
fi
