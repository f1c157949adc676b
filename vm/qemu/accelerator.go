// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

const (
	// readyLine is what the agent prints on the console once it serves.
	readyLine = "firkin-agent: ready"
	// probeTimeout is how long the kit may take to boot with hardware virtualization:
	// one to two seconds where it works. A KVM that cannot run a stock kernel hangs.
	probeTimeout = 20 * time.Second
	// probePoll is how often the console is looked at.
	probePoll = 100 * time.Millisecond
	// versionTimeout is for "qemu --version".
	versionTimeout = 20 * time.Second
	probeFile      = "qemu-accelerator.json"
	// probePrefix begins the names of the state directories of trials, probeID is the
	// one machine in each.
	probePrefix = ".probe-"
	probeID     = "probe"
	// probeOld is the age at which no trial is under way any more: what opens the
	// driver and deletes the machine included.
	probeOld = 5 * probeTimeout
)

// program is an installed QEMU.
type program struct {
	path    string // resolved
	version string // first line of --version
	// build tells two builds of one version apart: size and time of the file.
	build string
}

// findProgram finds QEMU and asks for its version. The error is ErrNotSupported and
// says what to install.
func findProgram(ctx context.Context, opts Options) (program, error) {
	name := opts.QEMU
	if name == "" {
		name = binaryName(opts.Arch)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		pkg := "qemu-system-x86"
		if opts.Arch == "arm64" {
			pkg = "qemu-system-arm"
		}
		return program{}, fmt.Errorf("%w: %s is not installed (Debian: apt-get install %s): %w", vm.ErrNotSupported, name, pkg, err)
	}
	if path, err = filepath.Abs(path); err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return program{}, fmt.Errorf("find %s: %w", name, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return program{}, fmt.Errorf("find %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return program{}, fmt.Errorf("%w: ask %s for its version: %w", vm.ErrNotSupported, path, err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	return program{
		path:    path,
		version: bounded(version),
		build:   fmt.Sprintf("%d %s", info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano)),
	}, nil
}

// compatibility digests everything that must be equal for a device state and a
// memory image to be continued.
func compatibility(arch, accelerator string, p program) (string, error) {
	cpu, err := hostCPU()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, part := range []string{
		Name, fmt.Sprint(deviceVersion), arch, accelerator, p.path, p.version, p.build, cpu,
		machineType(arch), cpuModel(arch, accelerator),
	} {
		fmt.Fprintf(sum, "%d:%s\n", len(part), part)
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// hostCPU tells processors apart whose features a guest may have seen. Empty where
// the host does not say.
func hostCPU() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if errors.Is(err, os.ErrNotExist) {
		return runtime.GOARCH, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the host's processor: %w", err)
	}
	return cpuIdentity(string(text)), nil
}

// cpuIdentity picks from a /proc/cpuinfo what identifies the first processor.
func cpuIdentity(cpuinfo string) string {
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	var id []string
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
			"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features":
			id = append(id, strings.TrimSpace(value))
		}
	}
	return strings.Join(id, "|")
}

// choice is the remembered answer of a probe.
type choice struct {
	// Key is what the answer depends on.
	Key         string    `json:"key"`
	Accelerator string    `json:"accelerator"`
	Reason      string    `json:"reason"`
	Time        time.Time `json:"time"`
}

// chooseAccelerator decides between KVM and emulation: by Options, by what is
// impossible, by what is remembered, by booting the kit once.
func (d *Driver) chooseAccelerator(ctx context.Context, p program) (string, error) {
	kvm := canUseKVM(d.opts.Arch)
	switch d.opts.Accelerator {
	case acceleratorTCG:
		return acceleratorTCG, nil
	case acceleratorKVM:
		if kvm != nil {
			return "", fmt.Errorf("%w: accelerator kvm: %w", vm.ErrNotSupported, kvm)
		}
		return acceleratorKVM, nil
	case "":
	default:
		return "", fmt.Errorf("%w: accelerator %q, want kvm, tcg or none", vm.ErrInvalidConfig, d.opts.Accelerator)
	}
	if kvm != nil {
		d.log.Info("Machines are emulated", "reason", kvm)
		return acceleratorTCG, nil
	}
	if d.opts.Kit.Digest == "" {
		d.log.Info("Machines are emulated", "reason", "no guest kit to try hardware virtualization with")
		return acceleratorTCG, nil
	}
	cpu, err := hostCPU()
	if err != nil {
		return "", err
	}
	key := choiceKey(p, d.opts.Kit.Digest, cpu)
	var c choice
	if err := machinedir.ReadJSON(durable.Host, d.opts.CacheDir, probeFile, &c); err == nil && c.Key == key && (c.Accelerator == acceleratorKVM || c.Accelerator == acceleratorTCG) {
		return c.Accelerator, nil
	}
	d.log.Info("Trying hardware virtualization by booting the guest kit", "timeout", probeTimeout)
	c = choice{Key: key, Accelerator: acceleratorKVM, Reason: "the guest kit boots", Time: time.Now().UTC()}
	if err := d.probe(ctx); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("try hardware virtualization: %w", ctx.Err())
		}
		c.Accelerator, c.Reason = acceleratorTCG, bounded(err.Error())
	}
	d.log.Info("Chose the accelerator", "accelerator", c.Accelerator, "reason", c.Reason)
	if err := machinedir.WriteJSON(durable.Host, d.opts.CacheDir, probeFile, c); err != nil {
		return "", err
	}
	return c.Accelerator, nil
}

// choiceKey digests what the answer of a probe depends on.
func choiceKey(p program, kit, cpu string) string {
	sum := sha256.New()
	_ = json.NewEncoder(sum).Encode([]string{p.path, p.version, p.build, kit, cpu}) // a hash takes all
	return hex.EncodeToString(sum.Sum(nil))
}

// canUseKVM is why hardware virtualization is out of the question, or nil.
func canUseKVM(arch string) error {
	if arch != runtime.GOARCH {
		return fmt.Errorf("the host is %s, the guest %s", runtime.GOARCH, arch)
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// probe boots the kit with KVM, on a machine of its own that is gone when probe
// returns, and waits for the agent to say that it is ready.
func (d *Driver) probe(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("the guest kit did not boot within %s", probeTimeout))
	defer cancel()
	state, err := os.MkdirTemp(d.opts.CacheDir, probePrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	opts := d.opts
	opts.StateDir, opts.CacheDir, opts.Accelerator = state, state, acceleratorKVM
	trial, err := Open(ctx, opts)
	if err != nil {
		return err
	}
	defer trial.Close()
	m, err := trial.Create(ctx, probeID, vm.Config{Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, Kit: opts.Kit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Delete(context.WithoutCancel(ctx))) }()
	tick := time.NewTicker(probePoll)
	defer tick.Stop()
	for {
		text, err := m.(vm.Consoler).Console(ctx)
		if err == nil && bytes.Contains(text, []byte(readyLine)) {
			return nil
		}
		state, serr := m.State(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil || serr != nil {
			return errors.Join(err, serr)
		}
		if state == vm.StateExited {
			exit, err := m.Wait(ctx)
			return errors.Join(fmt.Errorf("the guest kit ended while booting: %s", exit.Detail), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// sweepProbes deletes what probes left whose process was killed: nobody else knows of
// their machines. One that is young may be another process's and still be under way.
func (d *Driver) sweepProbes(now time.Time) {
	left, err := filepath.Glob(filepath.Join(d.opts.CacheDir, probePrefix+"*"))
	if err != nil {
		return // the pattern is at fault: the cache's name has brackets in it
	}
	for _, dir := range left {
		info, err := os.Stat(dir)
		if err != nil || now.Sub(info.ModTime()) < probeOld {
			continue
		}
		err = machinedir.NewRegistry[*machine](filepath.Join(dir, "machines")).Remove(probeID, d.binary)
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			d.log.Warn("Leaving the machine of an interrupted trial behind", "dir", dir, "err", err)
		}
	}
}
