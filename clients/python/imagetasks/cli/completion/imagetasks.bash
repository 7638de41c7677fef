# Completes the words of imagetasks. A test holds it to the parsers.

_imagetasks_commands="stream watch targets ec2 protoset completion --help --version"
_imagetasks_shared="--output --accounts --regions --endpoint-url --timeout --ca-bundle --client-certificate
--client-key --token-file --help"
_imagetasks_stream="--image-ids --filters --max-age --forbid-stale"
_imagetasks_watch="--image-ids --filters --exec --until-done"
_imagetasks_ec2_commands="describe-store-image-tasks wait help"
_imagetasks_ec2_global="--debug --endpoint-url --no-verify-ssl --no-paginate --output --query --profile --region
--version --color --no-sign-request --ca-bundle --cli-read-timeout --cli-connect-timeout --show-targets --max-age
--forbid-stale --token-file --client-certificate --client-key --help"
_imagetasks_ec2_describe="--image-ids --dry-run --no-dry-run --filters --cli-input-json --starting-token
--page-size --max-items --generate-cli-skeleton help"

_imagetasks() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words="" command="" place
  COMPREPLY=()
  for ((place = 1; place < COMP_CWORD; place++)); do
    case ${COMP_WORDS[place]} in
      stream | watch | targets | ec2 | protoset | completion) command=${COMP_WORDS[place]} && break ;;
    esac
  done
  case $command:$before in
    ec2:--output) words="json text table" ;;
    *:--output) words="table json" ;;
    ec2:--color) words="on off auto" ;;
    ec2:--generate-cli-skeleton) words="input output" ;;
    ec2:--filters | stream:--filters | watch:--filters)
      words="Name=task-state,Values=InProgress Name=task-state,Values=Completed Name=task-state,Values=Failed
        Name=bucket,Values=" ;;
    ec2:--region) words="all" ;;
    *:--ca-bundle | *:--token-file | *:--client-certificate | *:--client-key | *:--cli-input-json)
      return ;; # the shell's own: files
    :*) words=$_imagetasks_commands ;;
    stream:*) words="$_imagetasks_shared $_imagetasks_stream" ;;
    watch:*) words="$_imagetasks_shared $_imagetasks_watch" ;;
    targets:*) words=$_imagetasks_shared ;;
    completion:*) words="bash zsh --help" ;;
    protoset:*) words="--help" ;;
    ec2:*)
      words="$_imagetasks_ec2_commands $_imagetasks_ec2_global"
      for ((; place < COMP_CWORD; place++)); do
        if [[ ${COMP_WORDS[place]} == wait ]]; then
          words="store-image-task-complete --image-ids --dry-run --no-dry-run --filters --cli-input-json --timeout
            --generate-cli-skeleton help $_imagetasks_ec2_global"
        fi
        if [[ ${COMP_WORDS[place]} == describe-store-image-tasks ]]; then
          words="$_imagetasks_ec2_describe $_imagetasks_ec2_global"
        fi
      done ;;
  esac
  # shellcheck disable=SC2207 # zsh's imitation of bash has no mapfile
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}

complete -o default -F _imagetasks imagetasks
