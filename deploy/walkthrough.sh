#!/usr/bin/env bash
# The whole flow against a running server: upload, training, a question in every mode but `auto`, streaming.
#
#   deploy/walkthrough.sh [--cleanup] [-q QUESTION]... [URL] [FILE]
#
# URL is LORAMEM_URL, or http://127.0.0.1:8000, by default, FILE is deploy/sample.txt. The questions stand beside the file (sample.json:
# a list of {question, expected}), or are given with -q. LORAMEM_API_KEY is sent as the bearer key, when set.
# LORAMEM_WALKTHROUGH_NAMESPACE (default: walkthrough) holds the document. --cleanup deletes it at the end.
#
# Needs bash, curl and python3 alone. Exit status: 0 when the job succeeded, these modes answered, `lora` was routed to
# the document and knew more than `base`; 1 when something of that failed; 2 for wrong arguments.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
modes=(base lora rag icl hybrid)
namespace=${LORAMEM_WALKTHROUGH_NAMESPACE:-walkthrough}
cleanup= given=() positional=()

usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
while (($#)); do
  case $1 in
    --cleanup) cleanup=yes ;;
    -q) (($# > 1)) || usage; given+=("$2"); shift ;;
    -*) usage ;;
    *) positional+=("$1") ;;
  esac
  shift
done
((${#positional[@]} <= 2)) || usage
url=${positional[0]:-${LORAMEM_URL:-http://127.0.0.1:8000}}
url=${url%/}
file=${positional[1]:-$here/sample.txt}
[[ -r $file ]] || { echo "walkthrough: cannot read $file" >&2; exit 2; }

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
curl=(curl --silent --show-error --max-time 900)
[[ -z ${LORAMEM_API_KEY:-} ]] || curl+=(--header "Authorization: Bearer $LORAMEM_API_KEY")

fail() { echo "walkthrough: $*" >&2; exit 1; }
steps() { python3 "$here/walkthrough_steps.py" "$@"; }
request() { # OUTPUT CURL_ARGUMENT...: prints the HTTP status
  local output=$1
  shift
  "${curl[@]}" --output "$output" --write-out '%{http_code}' "$@" || fail "no answer from $url"
}

upload() { # sets job and document
  local status
  status=$(request "$tmp/upload" --form "file=@$file" --form "namespace=$namespace" "$url/documents")
  [[ $status == 20[02] ]] || fail "upload of $file: HTTP $status: $(<"$tmp/upload")"
  document=$(steps field document.id <"$tmp/upload") && job=$(steps field job.id <"$tmp/upload") ||
    fail "the reply to the upload names no document or no job: $(<"$tmp/upload")"
}

follow() { # the job's events to its end, over dropped connections
  for _ in {1..60}; do
    if steps progress < <("${curl[@]}" --no-buffer "$url/jobs/$job/events" 2>"$tmp/trouble"); then return; fi
    sleep 1
  done
  fail "job $job has not ended: $(<"$tmp/trouble")"
}

ask() { # OUTPUT MODE QUESTION_JSON [stream]: the reply in OUTPUT, its HTTP status in OUTPUT.status
  steps body "$2" "$namespace" "$3" ${4:-} >"$tmp/body"
  request "$1" --no-buffer --header 'Content-Type: application/json' --data "@$tmp/body" "$url/query" >"$1.status"
}

ask_all() {
  local number=0 question mode
  while IFS= read -r question; do
    for mode in "${modes[@]}"; do
      ask "$tmp/answer.$number.$mode" "$mode" "$question" </dev/null
    done
    number=$((number + 1))
  done <"$tmp/questions"
}

check_stream() {
  ask "$tmp/stream" lora "$(head -1 "$tmp/questions")" stream
  steps stream "$tmp/stream"
}

delete_document() {
  local status
  status=$(request "$tmp/deleted" --request DELETE "$url/documents/$document")
  [[ $status == 20[024] ]] || { echo "FAILED delete: HTTP $status: $(<"$tmp/deleted")"; return 1; }
  status=$(request "$tmp/gone" "$url/documents/$document")
  [[ $status == 404 ]] || { echo "FAILED the deleted document is still there: HTTP $status"; return 1; }
  echo "ok     the document is deleted"
}

if ! steps questions "$file" "${given[@]}" >"$tmp/questions"; then
  echo "walkthrough: no questions for $file; write them to ${file%.*}.json or give -q" >&2
  exit 2
fi
"${curl[@]}" --fail --output /dev/null "$url/readyz" 2>/dev/null || fail "$url is not ready; start it with: make run"

started=$SECONDS
echo "uploading $file to $url (namespace $namespace)"
upload
follow
request "$tmp/job" "$url/jobs/$job" >"$tmp/job.status"
state=$(steps field state <"$tmp/job") || fail "job $job: $(<"$tmp/job")"
[[ $state == succeeded ]] || fail "job $job ended as $state: $(steps field error <"$tmp/job")"
echo "ok     job $job succeeded, $((SECONDS - started)) s after the upload; document $document"

echo "asking $(wc -l <"$tmp/questions") questions in ${#modes[@]} modes"
ask_all
result=0
steps report "$tmp" "$document" "${modes[@]}" || result=1
check_stream || result=1
[[ -z $cleanup ]] || delete_document || result=1
((result == 0)) || fail "the flow did not work as a whole"
echo "the whole flow worked, in $((SECONDS - started)) s"
