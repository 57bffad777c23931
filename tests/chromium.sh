#!/usr/bin/env bash
# Chromium for the tests that open the report's page, out of Debian's packages where it is missing; needs root or sudo.
# Without it those tests are skipped, and say so: this script never fails.
set -euo pipefail
command -v chromium chromium-browser >/dev/null && exit
root=(env)
[ "$(id -u)" = 0 ] || root=(sudo -n)
said=$(mktemp)
{
    "${root[@]}" apt-get -q -o DPkg::Lock::Timeout=300 update
    "${root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends chromium
} >"$said" 2>&1 || { tail -n 3 "$said" >&2 && echo "chromium.sh: apt could not install chromium; tests of the page are skipped" >&2; }
rm -f "$said"
