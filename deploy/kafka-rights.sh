#!/bin/sh
# Gives each service its name and password (SCRAM) and just the rights that it needs, and makes the topic of orders. As compose.kafka-sasl.yaml
# uses it; may be run again, after a password or a topic was added. TOPICS are the topics: those of further aggregate types beside orders.
set -eu
umask 077
bin=${KAFKA_BIN:-/opt/kafka/bin}
secrets=${OUTRIDER_SECRETS:-/run/secrets}
server=${KAFKA_ADMIN:-localhost:9094}
group=outrider-processor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Passwords are handed over in files: arguments can be read by other processes.
cat >"$work/admin.properties" <<END
security.protocol=SASL_PLAINTEXT
sasl.mechanism=PLAIN
sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" password="$(cat "$secrets/kafka_admin")";
END

tool() {
    name=$1
    shift
    "$bin/kafka-$name.sh" --bootstrap-server "$server" --command-config "$work/admin.properties" "$@"
}

tries=0
until tool topics --list >"$work/first.log" 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -ge 30 ]; then
        cat "$work/first.log" >&2
        echo "Kafka does not answer at $server" >&2
        exit 1
    fi
    sleep 1
done

user() {
    printf 'SCRAM-SHA-512=password=%s\n' "$(cat "$secrets/kafka_$1")" >"$work/$1.properties"
    tool configs --alter --entity-type users --entity-name "$1" --add-config-file "$work/$1.properties"
}

may() {
    who=$1
    shift
    tool acls --add --force --allow-principal "User:$who" "$@"
}

for name in relay processor operator; do
    user "$name"
done
for topic in ${TOPICS:-orders}; do
    tool topics --create --if-not-exists --topic "$topic" --partitions 12
    # DescribeConfigs: how long a record may be, and for how long it is kept.
    may relay --topic "$topic" --operation Write --operation DescribeConfigs
    may processor --topic "$topic" --operation Read --operation DescribeConfigs
    may operator --topic "$topic" --operation Describe --operation DescribeConfigs
done
may processor --group "$group" --operation Read
may operator --group "$group" --operation Describe
