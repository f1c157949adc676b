// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package linux_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// patience is how long a test waits for an emulated machine on a busy host.
const patience = 90 * time.Second

// The tests here drive QEMU by hand, so that what they show of the guest kit does not
// depend on the driver.
var qemuCommands = map[string][]string{
	"amd64": {"qemu-system-x86_64", "-M", "q35", "-cpu", "max"},
	"arm64": {"qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72"},
}

type machineOptions struct {
	initramfs string   // in the place of the kit's
	images    []string // of the slots
	restore   string   // a saved state
	scratch   string   // the scratch disk of a saved machine, used as it is
}

type machine struct {
	dir     string
	scratch string
	console string
	qmp     *bufio.Scanner
	qmpConn net.Conn
	exited  chan struct{}
	exit    error
}

func loadKit(t *testing.T, arch string) vm.Kit {
	t.Helper()
	root := os.Getenv("FIRKIN_KIT_DIR")
	if root == "" {
		t.Fatal("FIRKIN_KIT_DIR is not set: run make guest, then set it to bin/guest")
	}
	k, err := kit.Load(filepath.Join(root, arch))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func startMachine(t *testing.T, k vm.Kit, o machineOptions) *machine {
	t.Helper()
	// Socket paths are short, t.TempDir's are not.
	dir, err := os.MkdirTemp("", "fk")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{dir: dir, scratch: o.scratch, console: filepath.Join(dir, "console"), exited: make(chan struct{})}
	if m.scratch == "" {
		m.scratch = filepath.Join(dir, "scratch")
		run(t, "cp", "--sparse=always", k.Scratch, m.scratch)
	}
	if o.initramfs == "" {
		o.initramfs = k.Initramfs
	}
	args := append(slices.Clone(qemuCommands[k.Arch][1:]),
		"-accel", "tcg", "-m", "256", "-smp", "1", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", k.Kernel, "-initrd", o.initramfs, "-append", k.Cmdline,
		"-serial", "file:"+m.console,
		"-qmp", "unix:"+filepath.Join(dir, "qmp")+",server=on,wait=off",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path="+filepath.Join(dir, "agent")+",server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name=firkin.agent",
		"-drive", "if=none,id=scratch,format=raw,cache=unsafe,file="+m.scratch, "-device", "virtio-blk-pci,drive=scratch,serial=scratch",
		"-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=")
	for i, image := range o.images {
		id := "slot" + strconv.Itoa(i)
		args = append(args, "-drive", "if=none,id="+id+",format=raw,readonly=on,file="+image, "-device", "virtio-blk-pci,drive="+id+",serial="+id)
	}
	if o.restore != "" {
		args = append(args, "-incoming", "exec:cat "+o.restore)
	}
	cmd := exec.Command(qemuCommands[k.Arch][0], args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start QEMU: %v", err)
	}
	go func() {
		if m.exit = cmd.Wait(); m.exit != nil {
			m.exit = fmt.Errorf("%w: %s", m.exit, stderr.String())
		}
		close(m.exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-m.exited
		if t.Failed() {
			b, _ := os.ReadFile(m.console)
			t.Logf("console of the machine:\n%s\nQEMU: %v", b, m.exit)
		}
		if m.qmpConn != nil {
			m.qmpConn.Close()
		}
		os.RemoveAll(dir)
	})
	m.qmpConn = m.dial(t, "qmp")
	m.qmp = bufio.NewScanner(m.qmpConn)
	m.qmp.Scan() // its greeting
	m.command(t, "qmp_capabilities", nil)
	return m
}

// dial connects to one of the machine's sockets, which QEMU makes when it starts.
func (m *machine) dial(t *testing.T, name string) net.Conn {
	t.Helper()
	var d net.Dialer
	for deadline := time.Now().Add(patience); ; {
		c, err := d.DialContext(t.Context(), "unix", filepath.Join(m.dir, name))
		if err == nil {
			return c
		}
		m.pause(t, deadline, "socket "+name+": "+err.Error())
	}
}

// pause waits a moment for what a machine does without telling.
func (m *machine) pause(t *testing.T, deadline time.Time, why string) {
	t.Helper()
	select {
	case <-m.exited:
		t.Fatalf("the machine ended: %v (%s)", m.exit, why)
	case <-time.After(10 * time.Millisecond):
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", why)
		}
	}
}

func (m *machine) command(t *testing.T, name string, arguments map[string]any) map[string]any {
	t.Helper()
	if arguments == nil {
		arguments = map[string]any{}
	}
	b, err := json.Marshal(map[string]any{"execute": name, "arguments": arguments})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.qmpConn.Write(append(b, '\n')); err != nil {
		t.Fatalf("QMP %s: %v", name, err)
	}
	for m.qmp.Scan() {
		var answer struct {
			Return map[string]any  `json:"return"`
			Error  json.RawMessage `json:"error"`
			Event  string          `json:"event"`
		}
		if err := json.Unmarshal(m.qmp.Bytes(), &answer); err != nil {
			t.Fatalf("QMP %s: %v", name, err)
		}
		if answer.Error != nil {
			t.Fatalf("QMP %s: %s", name, answer.Error)
		}
		if answer.Event == "" {
			return answer.Return
		}
	}
	t.Fatalf("QMP %s: %v", name, m.qmp.Err())
	return nil
}

func (m *machine) awaitConsole(t *testing.T, line string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		b, err := os.ReadFile(m.console)
		if err == nil && strings.Contains(string(b), line) {
			return
		}
		m.pause(t, deadline, fmt.Sprintf("%q on the console", line))
	}
}

func (m *machine) awaitExit(t *testing.T) {
	t.Helper()
	select {
	case <-m.exited:
		if m.exit != nil {
			t.Fatalf("QEMU: %v", m.exit)
		}
	case <-time.After(patience):
		t.Fatal("the machine did not end")
	}
}

// save stops the machine and writes its state to a file.
func (m *machine) save(t *testing.T, path string) {
	t.Helper()
	m.command(t, "stop", nil)
	m.command(t, "migrate", map[string]any{"uri": "exec:cat > " + path})
	m.awaitStatus(t, "query-migrate", "completed")
}

func (m *machine) awaitStatus(t *testing.T, query, want string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		status := m.command(t, query, nil)["status"]
		switch status {
		case want:
			return
		case "failed":
			t.Fatalf("%s: failed", query)
		}
		m.pause(t, deadline, fmt.Sprintf("%s: %v", query, status))
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// imageFile makes a disk image of 64 MiB with an ext4 file system that holds files.
func imageFile(t *testing.T, files map[string]string) string {
	t.Helper()
	tree := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := emptyImage(t)
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		mkfs = "/usr/sbin/mkfs.ext4"
	}
	run(t, mkfs, "-q", "-F", "-O", "^has_journal", "-d", tree, path)
	return path
}

func emptyImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	return path
}

func appendFile(t *testing.T, w io.Writer, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		t.Fatal(err)
	}
}
