# run.sh measure BASE OUT STAY_ON FIXED COMMAND...   one run of the runner, detached from the cable
# run.sh restore BASE                                puts back what a run that never ended (a reboot) left changed
# What is changed on the phone is written to BASE/saved before, and put back from there when the runner has ended,
# however it ended: the host may be gone by then. Both are called by the one who holds the lock, or while nobody does.
task=$1 base=$2
saved=$base/saved

restore() {
    [ -f "$saved" ] || return
    while read -r name value; do
        case $name in
        stay_on) settings put global stay_on_while_plugged_in "$value" ;;
        fixed) cmd power set-fixed-performance-mode-enabled false ;;
        esac
    done <"$saved"
    rm -f "$saved"
}

[ "$task" = restore ] && { restore; exit; }
out=$3 stay_on=$4 fixed=$5
shift 5
trap 'stopped=1; [ "$runner" ] && kill "$runner" 2>/dev/null' TERM
if [ ! -f "$saved" ] && [ "$stay_on$fixed" != 00 ]; then
    {
        [ "$stay_on" = 1 ] && echo "stay_on $(settings get global stay_on_while_plugged_in | grep -E '^[0-9]+$' || echo 0)"
        [ "$fixed" = 1 ] && echo "fixed true"
    } >"$saved.new"
    mv "$saved.new" "$saved"
fi
# again after a reboot, which forgets the fixed clocks
[ "$stay_on" = 1 ] && settings put global stay_on_while_plugged_in 7 # any charger: a dark screen moves the shell to slow cores
[ "$fixed" = 1 ] && cmd power set-fixed-performance-mode-enabled true
if [ "$stopped" ]; then
    code=143
else
    "$@" &
    runner=$!
    wait $runner
    code=$?
    while kill -0 $runner 2>/dev/null; do # the signal ended our waiting first
        wait $runner
        code=$?
    done
fi
restore
echo $code >"$out/exit.new"
mv "$out/exit.new" "$out/exit"
