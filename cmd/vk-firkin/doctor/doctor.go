// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package doctor finds out what a host can do for vk-firkin, and what is to be
// installed or changed. It looks at the host through Host only and changes nothing.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

// Status is the outcome of a check.
type Status string

// The outcomes.
const (
	// OK: nothing to do.
	OK Status = "ok"
	// Warn: it works, but slower or with less room than it could.
	Warn Status = "warn"
	// Fail: pods cannot run until it is remedied.
	Fail Status = "fail"
)

// Finding is what one check found.
type Finding struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Found is what is there.
	Found string `json:"found"`
	// Remedy is what to do; empty when there is nothing to do.
	Remedy string `json:"remedy,omitempty"`
}

// Host is the host as the checks see it. Paths need not exist: what is asked about a
// missing directory is answered for the nearest one above it that exists.
type Host interface {
	// Run runs a program and returns what it prints on standard output.
	// exec.ErrNotFound when it is not installed.
	Run(ctx context.Context, name string, args ...string) (string, error)
	// ReadFile reads a small file.
	ReadFile(path string) ([]byte, error)
	// OpenReadWrite tells whether this user may open a device.
	OpenReadWrite(path string) error
	// Writable tells whether this user may make files in a directory.
	Writable(dir string) error
	// FreeBytes is the disk space that this user may still take.
	FreeBytes(dir string) (int64, error)
	// User names the user that the process runs as.
	User() string
	// Mac finds out what there is to know of a Mac; it is asked of no other host.
	Mac(ctx context.Context, stateDir string) mac.Facts
	// Machines is how many machines there are in the state directory.
	Machines(stateDir string) (int, error)
}

// Options say what to look at.
type Options struct {
	// OS and Arch are the host's, in Go's words.
	OS, Arch string
	// StateDir, CacheDir and KitDir are absolute.
	StateDir, CacheDir, KitDir string
	// VerifyKit checks the guest kit's files against its manifest.
	VerifyKit func(dir string) error
	// Accelerator finds out by a real boot how guests are executed: "kvm", "tcg". Nil,
	// or a kit that is not there, leaves the check out.
	Accelerator func(ctx context.Context) (string, error)
	// Framework fails when this program cannot call Virtualization.framework, of which
	// only a Mac is asked. Nil leaves the check out.
	Framework func() error
}

// The limits of the checks.
const (
	// Free disk below the first stops restores, below the second refills (design 6).
	diskFloor, diskComfort = 10 << 30, 20 << 30
	// The smallest machine is 128 MiB, and the node takes about 100 MiB; a handful of
	// small machines needs the second.
	memoryFloor, memoryComfort = 256 << 20, 2 << 30
	// socketLimit is what macOS allows for a unix socket's path, with its end mark.
	socketLimit = 104
	// longestSocket is the longest name below the state directory: an id of
	// vm.MaxIDBytes and a driver's longest socket.
	longestSocket = "/machines/0123456789abcdef0123456789abcdef/agent.sock"
)

// oldestQEMU is Debian 12's: nothing older is tested.
var oldestQEMU = [2]int{7, 2}

// Examine does all checks for the host's system, in the order in which a person
// would remedy them. It takes as long as the Accelerator takes; the other checks take
// well under a second, on a Mac that asks for a password a few.
func Examine(ctx context.Context, host Host, o Options) []Finding {
	var f []Finding
	switch o.OS {
	case "linux":
		f = append(f, checkQEMU(ctx, host, o.Arch)...)
		f = append(f, checkKVM(host), checkOvercommit(host))
	case "darwin":
		f = append(f, examineMac(ctx, host, o)...)
	default:
		f = append(f, Finding{"system", Fail, "this is " + o.OS, "vk-firkin runs on Linux and on macOS"})
	}
	kit := checkKit(o)
	f = append(f, kit)
	if o.OS == "linux" && o.Accelerator != nil && kit.Status == OK {
		f = append(f, checkAccelerator(ctx, o.Accelerator))
	}
	f = append(f,
		checkWritable(host, "state directory", "--state-dir", o.StateDir),
		checkWritable(host, "cache directory", "--cache-dir", o.CacheDir),
		checkDisk(host, "disk for state", o.StateDir),
		checkDisk(host, "disk for cache", o.CacheDir),
		checkMemory(ctx, host, o.OS),
		checkSocketPath(o.OS, o.StateDir))
	return f
}

// Failed tells whether pods cannot run.
func Failed(findings []Finding) bool {
	for _, f := range findings {
		if f.Status == Fail {
			return true
		}
	}
	return false
}

func checkQEMU(ctx context.Context, host Host, arch string) []Finding {
	program, pkg := "qemu-system-x86_64", "qemu-system-x86"
	if arch == "arm64" {
		program, pkg = "qemu-system-aarch64", "qemu-system-arm"
	}
	install := "install it (Debian: apt-get install " + pkg + ")"
	const name = "qemu"
	out, err := host.Run(ctx, program, "--version")
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return []Finding{{name, Fail, program + " is not installed", install}}
	case err != nil:
		return []Finding{{name, Fail, fmt.Sprintf("%s --version: %v", program, err), "re" + install}}
	}
	first, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	version := Finding{name, OK, first, ""}
	major, minor, ok := parseVersion(first)
	switch {
	case !ok:
		version.Status, version.Remedy = Warn, "this does not look like QEMU's version; "+install
	case major < oldestQEMU[0] || major == oldestQEMU[0] && minor < oldestQEMU[1]:
		version.Status, version.Remedy = Warn, fmt.Sprintf("nothing before QEMU %d.%d is tested; install a newer one", oldestQEMU[0], oldestQEMU[1])
	}
	network := Finding{"qemu network", OK, "user-mode network (libslirp) is built in", ""}
	out, err = host.Run(ctx, program, "-netdev", "help")
	if err != nil || !hasLine(out, "user") {
		network = Finding{"qemu network", Fail, "this QEMU has no user-mode network (libslirp)", "install the distribution's QEMU, or build QEMU with --enable-slirp"}
	}
	return []Finding{version, network}
}

func hasLine(text, line string) bool {
	for l := range strings.Lines(text) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

var versionPattern = regexp.MustCompile(`(\d+)(?:\.(\d+))?`)

func parseVersion(s string) (major, minor int, ok bool) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, false
	}
	major, err := strconv.Atoi(m[1])
	minor, _ = strconv.Atoi(m[2])
	return major, minor, err == nil
}

func checkKVM(host Host) Finding {
	const name, device = "kvm", "/dev/kvm"
	err := host.OpenReadWrite(device)
	switch {
	case err == nil:
		return Finding{name, OK, device + " can be opened", ""}
	case isPermission(err):
		return Finding{name, Warn, fmt.Sprintf("user %s may not open %s: machines are emulated, about ten times slower", host.User(), device),
			"add the user to the group kvm (usermod -aG kvm " + host.User() + ") and log in again"}
	case isNotExist(err):
		return Finding{name, Warn, "there is no " + device + ": machines are emulated, about ten times slower",
			"switch on virtualization in the firmware, or nested virtualization if this is a virtual machine itself"}
	default:
		return Finding{name, Warn, fmt.Sprintf("%s: %v: machines are emulated, about ten times slower", device, err), "load the kernel module kvm_intel or kvm_amd"}
	}
}

func checkAccelerator(ctx context.Context, probe func(context.Context) (string, error)) Finding {
	const name = "accelerator"
	switch accelerator, err := probe(ctx); {
	case err != nil:
		return Finding{name, Fail, "no machine can be run: " + err.Error(), "remedy what the other checks say, then run doctor again"}
	case accelerator == "tcg":
		return Finding{name, Warn, "machines are emulated (tcg): right, but slow", "see kvm; a KVM that is there and still not used could not boot the guest kit"}
	default:
		return Finding{name, OK, "the guest kit boots with " + accelerator, ""}
	}
}

func checkOvercommit(host Host) Finding {
	const name, file = "memory overcommit", "/proc/sys/vm/overcommit_memory"
	b, err := host.ReadFile(file)
	switch mode := strings.TrimSpace(string(b)); {
	case err != nil:
		return Finding{name, Warn, "not known: " + err.Error(), ""}
	case mode == "2":
		return Finding{name, Warn, "vm.overcommit_memory is 2: each machine counts with all of its memory, though clones share it",
			"sysctl vm.overcommit_memory=0"}
	default:
		return Finding{name, OK, "vm.overcommit_memory is " + mode, ""}
	}
}

func checkKit(o Options) Finding {
	const name = "guest kit"
	if o.VerifyKit == nil {
		return Finding{name, Warn, "not checked", ""}
	}
	if err := o.VerifyKit(o.KitDir); err != nil {
		return Finding{name, Fail, err.Error(), "build it with make guest, or name its directory with --guest-kit"}
	}
	return Finding{name, OK, o.KitDir + " is complete", ""}
}

func checkWritable(host Host, name, flag, dir string) Finding {
	if err := host.Writable(dir); err != nil {
		return Finding{name, Fail, fmt.Sprintf("user %s cannot write to %s: %v", host.User(), dir, err), "give the directory to this user, or choose another with " + flag}
	}
	return Finding{name, OK, dir + " is writable", ""}
}

func checkDisk(host Host, name, dir string) Finding {
	free, err := host.FreeBytes(dir)
	switch {
	case err != nil:
		return Finding{name, Warn, "free space is not known: " + err.Error(), ""}
	case free < diskFloor:
		return Finding{name, Fail, fmt.Sprintf("%s free at %s", size(free), dir), "free some: pods need " + size(diskFloor)}
	case free < diskComfort:
		return Finding{name, Warn, fmt.Sprintf("%s free at %s", size(free), dir), "free some: warm pools are not refilled below " + size(diskComfort)}
	default:
		return Finding{name, OK, fmt.Sprintf("%s free at %s", size(free), dir), ""}
	}
}

func checkMemory(ctx context.Context, host Host, goos string) Finding {
	const name = "memory"
	available, err := availableMemory(ctx, host, goos)
	switch {
	case err != nil:
		return Finding{name, Warn, "not known: " + err.Error(), ""}
	case available < memoryFloor:
		return Finding{name, Fail, size(available) + " available", "stop other programs: the smallest machine and the node need " + size(memoryFloor)}
	case available < memoryComfort:
		return Finding{name, Warn, size(available) + " available", "few machines will fit"}
	default:
		return Finding{name, OK, size(available) + " available", ""}
	}
}

// availableMemory is what programs could still get on Linux, and all of it on macOS,
// which has no such number.
func availableMemory(ctx context.Context, host Host, goos string) (int64, error) {
	if goos == "darwin" {
		out, err := host.Run(ctx, "sysctl", "-n", "hw.memsize")
		if err != nil {
			return 0, err
		}
		return strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	}
	b, err := host.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, "MemAvailable:"); ok { // proc(5)
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

func checkSocketPath(goos, stateDir string) Finding {
	const name = "socket paths"
	length := len(filepath.Clean(stateDir)) + len(longestSocket) + 1
	found := fmt.Sprintf("up to %d bytes below %s, %d are portable", length, stateDir, socketLimit)
	switch {
	case length <= socketLimit:
		return Finding{name, OK, found, ""}
	case goos == "linux":
		// The QEMU driver reaches long paths by the directory's descriptor.
		return Finding{name, Warn, found, "other programs cannot open these sockets; a shorter --state-dir helps"}
	default:
		return Finding{name, Fail, found, "choose a shorter --state-dir"}
	}
}

func size(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
