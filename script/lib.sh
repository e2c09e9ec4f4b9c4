# shellcheck shell=bash
# What script/demo, test, check and bench share. Source it from the root of the checkout.
#
# Works with bash 3.2 (macOS) and later. Messages go to stderr. What is there already is used as it is:
# host programs are looked for by name, not by package, and the virtual environment is made anew only
# when pyproject.toml or Python changed.

readonly EXIT_MISSING=5 # as agent-swarm itself: something that is needed is not installed
readonly OLDEST_PYTHON="3.11"
VENV="${AGENT_SWARM_VENV:-.venv}"
case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac

say() { printf '%s\n' "$*" >&2; }

# fail CODE MESSAGE [LINE...]
fail() {
    local code="$1"
    shift
    say "error: $1"
    shift
    local line
    for line in "$@"; do say "  $line"; done
    exit "$code"
}

# step TITLE COMMAND...: run quietly, show that and how long it runs, and its last lines where it fails.
step() {
    local title="$1" log ticker="" code=0
    shift
    log="$(mktemp "${TMPDIR:-/tmp}/agent-swarm-step.XXXXXX")"
    SECONDS=0
    if [ -t 2 ]; then
        # the loop ends by itself when this script does
        (while kill -0 $$ 2>/dev/null; do
            printf '\r\033[K  %s ... %s s' "$title" "$SECONDS" >&2
            sleep 1
        done) &
        ticker=$!
    else
        say "  $title ..."
    fi
    "$@" </dev/null >"$log" 2>&1 || code=$?
    if [ -n "$ticker" ]; then
        kill "$ticker" 2>/dev/null || true
        wait "$ticker" 2>/dev/null || true
        printf '\r\033[K' >&2
    fi
    if [ "$code" -eq 0 ]; then
        say "  $title: done in $SECONDS s"
    else
        say "  $title: failed after $SECONDS s; the end of its output:"
        tail -n 20 "$log" | sed 's/^/    /' >&2
    fi
    rm -f "$log"
    return "$code"
}

# --- host programs ------------------------------------------------------------------------------------

# Lines of: program, then its package for apt, dnf, pacman and brew. A program with a / is a file that
# must exist. "-" means that the system has it anyway, or does without.
host_table() {
    case "$(uname -m)" in
    aarch64 | arm64)
        echo "qemu-system-aarch64 qemu-system-arm qemu-system-aarch64-core qemu-system-aarch64 qemu"
        if have apt-get; then echo "/usr/share/AAVMF qemu-efi-aarch64 - - -"; fi # boots downloaded images
        ;;
    *) echo "qemu-system-x86_64 qemu-system-x86 qemu-system-x86-core qemu-system-x86 qemu" ;;
    esac
    cat <<'TABLE'
qemu-img qemu-utils qemu-img qemu-img qemu
ssh openssh-client openssh-clients openssh -
ssh-keygen openssh-client openssh-clients openssh -
TABLE
    [ "$(uname -s)" = Linux ] || return 0
    cat <<'TABLE'
passt passt passt passt -
mmdebstrap mmdebstrap - - -
newuidmap uidmap shadow-utils shadow -
mke2fs e2fsprogs e2fsprogs e2fsprogs -
mount mount util-linux util-linux -
zstd zstd zstd zstd -
/etc/ssl/certs/ca-certificates.crt ca-certificates - - -
TABLE
    if have mmdebstrap || have apt-get; then
        # images are built from Debian's packages; on Ubuntu the keys that sign them are a package
        echo "/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring - - -"
    fi
}

# What the tests need besides.
test_table() {
    case "$(uname -m)" in
    aarch64 | arm64) echo "qemu-system-x86_64 qemu-system-x86 qemu-system-x86-core qemu-system-x86 qemu" ;;
    *)
        echo "qemu-system-aarch64 qemu-system-arm qemu-system-aarch64-core qemu-system-aarch64 qemu"
        if [ "$(uname -s)" = Linux ]; then
            # the disk with GRUB for the BIOS, which is made where images can be built
            echo "grub-mkimage grub-common - - -"
            echo "/usr/lib/grub/i386-pc/boot.img grub-pc-bin - - -"
            echo "sfdisk fdisk util-linux util-linux -"
        fi
        ;;
    esac
    echo "perl perl-base perl-interpreter perl perl"
    echo "shellcheck shellcheck ShellCheck shellcheck shellcheck"
}

# Ordinary users of Debian have no sbin in PATH, and mke2fs lies there.
have() {
    case "$1" in
    /*) [ -e "$1" ] ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 ;;
    esac
}

package_manager() {
    local manager
    for manager in apt-get dnf pacman brew; do
        if have "$manager"; then
            echo "$manager"
            return
        fi
    done
    echo none
}

# missing_packages MANAGER: host_table-like lines on stdin; the packages of what is missing, each once.
missing_packages() {
    local program apt dnf pacman brew package
    while read -r program apt dnf pacman brew; do
        have "$program" && continue
        case "$1" in
        apt-get) package="$apt" ;;
        dnf) package="$dnf" ;;
        pacman) package="$pacman" ;;
        brew) package="$brew" ;;
        *) package="$program" ;;
        esac
        [ "$package" = "-" ] || echo "$package"
    done | sort -u
}

# install_command MANAGER PACKAGE...: the command that a user of this system types.
install_command() {
    local manager="$1" words
    shift
    case "$manager" in
    apt-get) words="apt-get install -y --no-install-recommends $*" ;;
    dnf) words="dnf install -y $*" ;;
    pacman) words="pacman -S --needed $*" ;;
    brew)
        echo "brew install $*"
        return
        ;;
    *)
        echo "(with this system's package manager) $*"
        return
        ;;
    esac
    if [ "$(id -u)" -eq 0 ]; then
        echo "$words"
    elif have sudo; then
        echo "sudo $words"
    else
        echo "su -c '$words'"
    fi
}

# as_root COMMAND...: as it is for root, else by a sudo that asks nothing.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() { [ "$(id -u)" -eq 0 ] || { have sudo && sudo -n true 2>/dev/null; }; }

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=120 "$@"
}

apt_install() {
    # lists that are missing or old are fetched once, and only when they are needed
    apt install --no-install-recommends "$@" || { apt update && apt install --no-install-recommends "$@"; }
}

# require_host TABLE...: install what is missing of the tables that the named functions print, or say
# with which command the user does, and stop before anything was changed.
require_host() {
    local manager table packages python_packages
    manager="$(package_manager)"
    python_packages="$(missing_python "$manager")"
    packages="$({
        [ -z "$python_packages" ] || printf '%s\n' "$python_packages"
        for table in "$@"; do "$table"; done | missing_packages "$manager"
    } | sort -u | tr '\n' ' ')"
    packages="${packages% }"
    if [ -n "$packages" ]; then
        local command
        # shellcheck disable=SC2086 # a list of words
        command="$(install_command "$manager" $packages)"
        if [ "$manager" != apt-get ] || ! may_install; then
            fail "$EXIT_MISSING" "programs are missing, and this script may not install them. Run this, then try again:" "" "$command"
        fi
        say "Installing what is missing: $packages"
        # shellcheck disable=SC2086
        step "apt-get install" apt_install $packages ||
            fail "$EXIT_MISSING" "the packages could not be installed. Check the network and apt's sources, or run this yourself:" "" "$command"
    fi
    PYTHON="$(find_python)" || fail "$EXIT_MISSING" "no Python $OLDEST_PYTHON or later that can make virtual environments was found" \
        "Install one (on Debian 12 or later, Ubuntu 24.04 or later: python3 and python3-venv)."
}

# --- Python -------------------------------------------------------------------------------------------

# python_works PYTHON MODULE: new enough, and able to import the module. A pyenv shim may be neither.
python_works() {
    "$1" -c "import sys, $2; sys.exit(sys.version_info < (${OLDEST_PYTHON/./, }))" >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${AGENT_SWARM_PYTHON:-} python3.13 python3.12 python3.11 python3 python3.14; do
        if python_works "$name" "venv, ensurepip"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# missing_python MANAGER: the packages that give a usable Python, nothing where there is one. Debian
# ships ensurepip apart, in the package of that very version.
missing_python() {
    find_python >/dev/null && return
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if [ "$1" = apt-get ] && python_works "$name" venv; then
            "$name" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
            return
        fi
    done
    case "$1" in
    apt-get) printf '%s\n' python3 python3-venv ;;
    pacman) echo python ;;
    brew) echo python@3.13 ;;
    *) echo python3 ;;
    esac
}

# setup_venv run|dev: the package, editable, in $VENV; with "dev" also what checks and tests it.
setup_venv() {
    local wanted
    wanted="$(fingerprint "$PYTHON")"
    mkdir -p "$(dirname "$VENV")"
    if have flock; then
        # of two scripts started at once, one makes it; the lock ends with the subshell
        (
            flock 9
            fill_venv "$1" "$wanted"
        ) 9<pyproject.toml
    else
        fill_venv "$1" "$wanted"
    fi
}

# fingerprint PYTHON: changes with pyproject.toml, the checkout's place and the version of Python.
fingerprint() {
    "$1" -c 'import hashlib, os, sys; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest(), os.getcwd(), sys.version.split()[0])'
}

fill_venv() {
    local kind="$1" wanted="$2" stamp extra=""
    for stamp in "$VENV/.installed-dev" "$VENV/.installed-$kind"; do
        if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$VENV/bin/python" -c 'import agent_swarm' 2>/dev/null; then
            return
        fi
    done
    if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
        fail 1 "$VENV exists and is no virtual environment" "Remove it, or set AGENT_SWARM_VENV to another directory."
    fi
    say "Preparing the Python environment $VENV ($("$PYTHON" --version))"
    rm -f "$VENV"/.installed-*
    if [ "$(fingerprint "$VENV/bin/python" 2>/dev/null)" != "$wanted" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        step "make the environment" "$PYTHON" -m venv --clear "$VENV" || fail 1 "the environment could not be made"
    fi
    if [ "$kind" = dev ]; then extra="[dev]"; fi
    step "install agent-swarm$extra and what it needs" \
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extra" ||
        fail 1 "agent-swarm could not be installed" \
            "If the package index cannot be reached, check the network; 'pip config list' shows the index in use."
    printf '%s\n' "$wanted" >"$VENV/.installed-$kind"
}
