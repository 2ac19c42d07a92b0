#!/bin/sh
# Makes the passwords that compose.yaml and its overlays hand to the containers: a file each, of 48 random characters. Run it from anywhere; those
# that are there stay as they are. Another folder may be named: sh deploy/secrets.sh FOLDER, and then OUTRIDER_SECRETS=FOLDER for compose.
set -eu
folder=${1:-$(dirname "$0")/secrets}
# Only its owner gets into the folder. The files in it are open to all: compose mounts each by itself, for users who have no name on this machine.
mkdir -p "$folder"
chmod 700 "$folder"
for name in postgres api relay processor operator grafana kafka_admin kafka_relay kafka_processor kafka_operator; do
    file=$folder/$name
    [ -s "$file" ] && continue
    # Without a line end: not every reader of such a file takes it off.
    od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n' >"$file.new"
    chmod 644 "$file.new"
    mv "$file.new" "$file"
    echo "made $file"
done
