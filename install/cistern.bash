# bash completion for cistern and cisternd: asks the programs themselves what they take.
_cistern() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} program=$1 names
	COMPREPLY=()
	case $before in
	-s | --socket | -c | --config | --out | -o | --capture | --transform)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		return
		;;
	esac
	if [[ ${program##*/} == cisternd ]]; then
		names=$("$program" --help 2>/dev/null | grep -oE -- '--[a-z-]+')
	elif ((COMP_CWORD == 1)); then
		names=$("$program" --help 2>/dev/null | sed -nE 's/^  ([a-z][a-z-]*) .*/\1/p')
	elif [[ ${COMP_WORDS[1]} == bench && COMP_CWORD -eq 2 ]]; then
		names=$("$program" bench --help 2>/dev/null | sed -nE 's/^  ([a-z]+)  .*/\1/p')
	elif [[ ${COMP_WORDS[1]} == bench ]]; then
		names=$("$program" bench "${COMP_WORDS[2]}" --help 2>/dev/null | grep -oE -- '--[a-z-]+')
	else
		names=$("$program" "${COMP_WORDS[1]}" --help 2>/dev/null | grep -oE -- '--[a-z-]+')
	fi
	mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word")
}
complete -F _cistern cistern cisternd
