#!/bin/sh
# Compare the public protos with those on main; the server's internal ones may change.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
base=
for ref in origin/main main; do
    if git rev-parse --quiet --verify "$ref:proto/lazyfx" >/dev/null 2>&1; then
        base=$ref
        break
    fi
done
if [ -z "$base" ]; then
    echo "no main to compare with: nothing can break"
    exit 0
fi
git archive "$base" proto/lazyfx | tar -x -C "$scratch"
config='{"version":"v2","breaking":{"use":["FILE"],"ignore":["google"]}}'
"$PYTHON" proto/generate.py --image "$scratch/base.binpb" --root "$scratch/proto"
mkdir "$scratch/now"
cp -r proto/lazyfx "$scratch/now/lazyfx"
"$PYTHON" proto/generate.py --image "$scratch/now.binpb" --root "$scratch/now"
"$BUF" breaking "$scratch/now.binpb" --against "$scratch/base.binpb" --config "$config"
