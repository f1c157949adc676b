// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package doctor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/doctor"
	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

// host is a host as a test describes it.
type host struct {
	programs map[string]string // by command line
	files    map[string]string
	kvm      error
	writable error
	free     int64
	facts    *mac.Facts // nil: this is no Mac, and must not be asked as one
	machines int
}

func (h *host) Mac(context.Context, string) mac.Facts {
	if h.facts == nil {
		panic("asked as if it were a Mac")
	}
	return *h.facts
}

func (h *host) Machines(string) (int, error) { return h.machines, nil }

func (h *host) Run(_ context.Context, name string, args ...string) (string, error) {
	out, ok := h.programs[strings.Join(append([]string{name}, args...), " ")]
	if !ok {
		return "", fmt.Errorf("run: %w", exec.ErrNotFound)
	}
	return out, nil
}

func (h *host) ReadFile(path string) ([]byte, error) {
	s, ok := h.files[path]
	if !ok {
		return nil, os.ErrNotExist
	}
	return []byte(s), nil
}

func (h *host) OpenReadWrite(string) error      { return h.kvm }
func (h *host) Writable(string) error           { return h.writable }
func (h *host) FreeBytes(string) (int64, error) { return h.free, nil }
func (h *host) User() string                    { return "tina" }

func linuxHost() *host {
	return &host{
		programs: map[string]string{
			"qemu-system-x86_64 --version":    "QEMU emulator version 10.0.2 (Debian 1:10.0.2)\nCopyright (c)\n",
			"qemu-system-x86_64 -netdev help": "Available netdev backend types:\nsocket\nuser\ntap\n",
			"sysctl -n hw.memsize":            "17179869184\n",
		},
		files: map[string]string{
			"/proc/meminfo":                  "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n",
			"/proc/sys/vm/overcommit_memory": "0\n",
		},
		free: 100 << 30,
	}
}

func TestExamine(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*host, *doctor.Options)
		want   string // the findings that are not ok: name=status
		remedy string // in one of them
	}{
		"all is well":     {func(*host, *doctor.Options) {}, "", ""},
		"no QEMU":         {func(h *host, _ *doctor.Options) { h.programs = nil }, "qemu=fail", "apt-get install qemu-system-x86"},
		"no QEMU for arm": {func(_ *host, o *doctor.Options) { o.Arch = "arm64" }, "qemu=fail", "apt-get install qemu-system-arm"},
		"old QEMU": {func(h *host, _ *doctor.Options) {
			h.programs["qemu-system-x86_64 --version"] = "QEMU emulator version 7.1.0"
		}, "qemu=warn", "7.2"},
		"strange QEMU":    {func(h *host, _ *doctor.Options) { h.programs["qemu-system-x86_64 --version"] = "hello" }, "qemu=warn", "apt-get"},
		"no slirp":        {func(h *host, _ *doctor.Options) { h.programs["qemu-system-x86_64 -netdev help"] = "tap\nvhost-user\n" }, "qemu network=fail", "--enable-slirp"},
		"no KVM":          {func(h *host, _ *doctor.Options) { h.kvm = os.ErrNotExist }, "kvm=warn", "nested virtualization"},
		"no right to KVM": {func(h *host, _ *doctor.Options) { h.kvm = os.ErrPermission }, "kvm=warn", "usermod -aG kvm tina"},
		"emulated": {func(_ *host, o *doctor.Options) {
			o.Accelerator = func(context.Context) (string, error) { return "tcg", nil }
		}, "accelerator=warn", "could not boot"},
		"nothing boots": {func(_ *host, o *doctor.Options) {
			o.Accelerator = func(context.Context) (string, error) { return "", errors.New("no") }
		}, "accelerator=fail", "doctor again"},
		"no kit": {func(_ *host, o *doctor.Options) {
			o.VerifyKit = func(string) error { return errors.New("kit.json: no such file") }
		}, "guest kit=fail", "make guest"},
		"strict overcommit":             {func(h *host, _ *doctor.Options) { h.files["/proc/sys/vm/overcommit_memory"] = "2\n" }, "memory overcommit=warn", "sysctl"},
		"not writable":                  {func(h *host, _ *doctor.Options) { h.writable = os.ErrPermission }, "state directory=fail, cache directory=fail", "--cache-dir"},
		"exactly the floor of the disk": {func(h *host, _ *doctor.Options) { h.free = 10 << 30 }, "disk for state=warn, disk for cache=warn", "20.0 GiB"},
		"full disk":                     {func(h *host, _ *doctor.Options) { h.free = 10<<30 - 1 }, "disk for state=fail, disk for cache=fail", "10.0 GiB"},
		"little memory":                 {func(h *host, _ *doctor.Options) { h.files["/proc/meminfo"] = "MemAvailable: 300000 kB\n" }, "memory=warn", "few"},
		"no memory":                     {func(h *host, _ *doctor.Options) { h.files["/proc/meminfo"] = "MemAvailable: 3000 kB\n" }, "memory=fail", "stop other"},
		"damaged meminfo":               {func(h *host, _ *doctor.Options) { h.files["/proc/meminfo"] = "MemAvailable: lots\n" }, "memory=warn", ""},
		"long state directory":          {func(_ *host, o *doctor.Options) { o.StateDir = "/" + strings.Repeat("x", 60) }, "socket paths=warn", "--state-dir"},
		"a Mac":                         {func(h *host, o *doctor.Options) { *h, o.OS, o.Arch = *macHost(), "darwin", "arm64" }, "", ""},
		"a Mac with a long path": {func(h *host, o *doctor.Options) {
			*h, o.OS, o.Arch, o.StateDir = *macHost(), "darwin", "arm64", "/"+strings.Repeat("x", 60)
		}, "socket paths=fail", "shorter"},
		"another system": {func(_ *host, o *doctor.Options) { o.OS = "plan9" }, "system=fail", "Linux"},
	} {
		t.Run(name, func(t *testing.T) {
			h := linuxHost()
			o := doctor.Options{OS: "linux", Arch: "amd64", StateDir: "/s", CacheDir: "/c", KitDir: "/k", VerifyKit: func(string) error { return nil },
				Accelerator: func(context.Context) (string, error) { return "kvm", nil }}
			c.change(h, &o)
			findings := doctor.Examine(t.Context(), h, o)
			var got, remedies []string
			fails := false
			for _, f := range findings {
				if f.Name == "" || f.Found == "" {
					t.Errorf("says nothing: %+v", f)
				}
				if f.Status == doctor.OK {
					continue
				}
				got = append(got, f.Name+"="+string(f.Status))
				remedies = append(remedies, f.Remedy)
				fails = fails || f.Status == doctor.Fail
			}
			if strings.Join(got, ", ") != c.want {
				t.Errorf("got %q, want %q: %+v", got, c.want, findings)
			}
			if !strings.Contains(strings.Join(remedies, "\n"), c.remedy) {
				t.Errorf("remedies %q, want %q in them", remedies, c.remedy)
			}
			if doctor.Failed(findings) != fails {
				t.Errorf("Failed is %v", !fails)
			}
		})
	}
}

// TestThisHost asks the host that runs the tests what must be true of any.
func TestThisHost(t *testing.T) {
	h := doctor.ThisHost{}
	dir := t.TempDir()
	if free, err := h.FreeBytes(filepath.Join(dir, "not", "there")); err != nil || free <= 0 {
		t.Errorf("free bytes: %d, %v", free, err)
	}
	if err := h.Writable(filepath.Join(dir, "not", "there")); err != nil {
		t.Error(err)
	}
	if _, err := h.Run(t.Context(), "there-is-no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
	if err := h.OpenReadWrite(filepath.Join(dir, "x")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if h.User() == "" {
		t.Error("no user")
	}
	if n, err := h.Machines(dir); n != 0 || err != nil {
		t.Errorf("%d machines, %v", n, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "machines", "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "machines", "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := h.Machines(dir); n != 1 || err != nil {
		t.Errorf("%d machines, %v", n, err)
	}
}
