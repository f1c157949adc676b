// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package apple

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/Code-Hex/vz/v3"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

func linux() framework.Configuration {
	return framework.Configuration{
		GuestOS: framework.Linux, CPUs: 2, MemoryBytes: 1 << 30, MachineIdentifier: []byte("one"),
		Kernel: "/kernel", Initramfs: "/initramfs", CommandLine: "console=hvc0",
		Disks: []framework.Disk{{Path: "/slot", ReadOnly: true, Serial: "slot0"}, {Path: "/scratch", Serial: "scratch"}},
		MAC:   net.HardwareAddr{2, 0, 0, 0, 0, 1}, Network: os.NewFile(100, "network"),
		ConsoleIn: os.NewFile(101, "in"), ConsoleOut: os.NewFile(102, "out"), Entropy: true,
	}
}

func macOS() framework.Configuration {
	return framework.Configuration{
		GuestOS: framework.MacOS, CPUs: 4, MemoryBytes: 4 << 30, MachineIdentifier: []byte("one"),
		HardwareModel: []byte("model"), AuxiliaryStorage: "/aux",
		Disks: []framework.Disk{{Path: "/disk", Serial: "disk"}},
		MAC:   net.HardwareAddr{2, 0, 0, 0, 0, 1}, Network: os.NewFile(100, "network"),
	}
}

var wantLinux = `NewLinuxBootLoader(/kernel, [initrd /initramfs line console=hvc0])
NewGenericMachineIdentifierWithData(one)
NewGenericPlatformConfiguration([id one])
NewVirtualMachineConfiguration(NewLinuxBootLoader, 2, 1073741824)
SetPlatform(NewGenericPlatformConfiguration)
NewDiskImageStorageDeviceAttachmentWithCacheAndSync(/slot, true, cached, fsync)
NewVirtioBlockDeviceConfiguration(NewDiskImageStorageDeviceAttachmentWithCacheAndSync)
SetBlockDeviceIdentifier(slot0)
NewDiskImageStorageDeviceAttachmentWithCacheAndSync(/scratch, false, cached, fsync)
NewVirtioBlockDeviceConfiguration(NewDiskImageStorageDeviceAttachmentWithCacheAndSync)
SetBlockDeviceIdentifier(scratch)
SetStorageDevices([NewVirtioBlockDeviceConfiguration NewVirtioBlockDeviceConfiguration])
NewFileHandleNetworkDeviceAttachment(network)
NewVirtioNetworkDeviceConfiguration(NewFileHandleNetworkDeviceAttachment)
NewMACAddress(02:00:00:00:00:01)
SetMACAddress(02:00:00:00:00:01)
SetNetworkDevices([NewVirtioNetworkDeviceConfiguration])
NewFileHandleSerialPortAttachment(in, out)
NewVirtioConsoleDeviceSerialPortConfiguration(NewFileHandleSerialPortAttachment)
SetSerialPorts([NewVirtioConsoleDeviceSerialPortConfiguration])
NewVirtioEntropyDeviceConfiguration()
SetEntropyDevices([NewVirtioEntropyDeviceConfiguration])
NewVirtioSocketDeviceConfiguration()
SetSocketDevices([NewVirtioSocketDeviceConfiguration])
Validate()
NewVirtualMachine(NewVirtualMachineConfiguration)`

var wantMacOS = `NewMacOSBootLoader()
NewMacMachineIdentifierWithData(one)
NewMacHardwareModelWithData(model)
NewMacAuxiliaryStorage(/aux)
NewMacPlatformConfiguration([model model id one NewMacAuxiliaryStorage(/aux)])
NewVirtualMachineConfiguration(NewMacOSBootLoader, 4, 4294967296)
SetPlatform(NewMacPlatformConfiguration)
NewMacGraphicsDeviceConfiguration()
NewMacGraphicsDisplayConfiguration(1920, 1200, 80)
NewMacKeyboardConfiguration()
NewMacTrackpadConfiguration()
SetDisplays([NewMacGraphicsDisplayConfiguration])
SetGraphicsDevices([NewMacGraphicsDeviceConfiguration])
SetKeyboards([NewMacKeyboardConfiguration])
SetPointingDevices([NewMacTrackpadConfiguration])
NewDiskImageStorageDeviceAttachmentWithCacheAndSync(/disk, false, automatic, fsync)
NewVirtioBlockDeviceConfiguration(NewDiskImageStorageDeviceAttachmentWithCacheAndSync)
SetBlockDeviceIdentifier(disk)
SetStorageDevices([NewVirtioBlockDeviceConfiguration])
NewFileHandleNetworkDeviceAttachment(network)
NewVirtioNetworkDeviceConfiguration(NewFileHandleNetworkDeviceAttachment)
NewMACAddress(02:00:00:00:00:01)
SetMACAddress(02:00:00:00:00:01)
SetNetworkDevices([NewVirtioNetworkDeviceConfiguration])
NewVirtioSocketDeviceConfiguration()
SetSocketDevices([NewVirtioSocketDeviceConfiguration])
Validate()
NewVirtualMachine(NewVirtualMachineConfiguration)`

// TestNew has every call with its arguments, and no memory balloon.
func TestNew(t *testing.T) {
	for _, test := range []struct {
		cfg  framework.Configuration
		want string
	}{{linux(), wantLinux}, {macOS(), wantMacOS}} {
		vz.Reset()
		m, err := New(nil).New(test.cfg)
		if err != nil {
			t.Fatalf("%s: %v", test.cfg.GuestOS, err)
		}
		if _, kept := machines.Load(m); !kept || m.(*machine).files != [...]*os.File{test.cfg.Network, test.cfg.ConsoleIn, test.cfg.ConsoleOut} {
			t.Errorf("%s: the machine or its files may be collected while it lives", test.cfg.GuestOS)
		}
		if got := strings.Join(vz.Calls, "\n"); got != test.want {
			t.Errorf("%s: calls\n%s\nwant\n%s", test.cfg.GuestOS, got, test.want)
		}
	}
}

// TestNewFails lets each call of New fail once.
func TestNewFails(t *testing.T) {
	for _, cfg := range []framework.Configuration{linux(), macOS()} {
		vz.Reset()
		if _, err := New(nil).New(cfg); err != nil {
			t.Fatal(err)
		}
		for _, call := range vz.Calls {
			name, _, _ := strings.Cut(call, "(")
			if strings.HasPrefix(name, "Set") && name != "SetBlockDeviceIdentifier" {
				continue // has no error to give
			}
			vz.Reset()
			vz.Fail[name] = &vz.NSError{Domain: framework.Domain, Code: 5, LocalizedDescription: "planted", UserInfo: "{}"}
			m, err := New(nil).New(cfg)
			var fault *framework.Error
			if m != nil || !errors.As(err, &fault) || *fault != (framework.Error{Domain: framework.Domain, Code: framework.CodeInvalidDiskImage, Description: "planted {}"}) {
				t.Errorf("%s: %s failed, and New gave %v, %v", cfg.GuestOS, name, m, err)
			}
			if made := slices.ContainsFunc(vz.Calls, func(c string) bool { return strings.HasPrefix(c, "NewVirtualMachine(") }); made && name != "NewVirtualMachine" {
				t.Errorf("%s: %s failed, and a machine was made", cfg.GuestOS, name)
			}
		}
	}
}

// TestNewRefuses has what would make the real binding panic or raise an exception.
func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		cfg    framework.Configuration
		change func(*framework.Configuration)
	}{
		{"another guest OS", linux(), func(c *framework.Configuration) { c.GuestOS = "plan9" }},
		{"no identifier", linux(), func(c *framework.Configuration) { c.MachineIdentifier = nil }},
		{"unknown identifier", linux(), func(c *framework.Configuration) { vz.Unknown["one"] = true }},
		{"no Mac identifier", macOS(), func(c *framework.Configuration) { c.MachineIdentifier = nil }},
		{"unknown Mac identifier", macOS(), func(c *framework.Configuration) { vz.Unknown["one"] = true }},
		{"no hardware model", macOS(), func(c *framework.Configuration) { c.HardwareModel = []byte{} }},
		{"unsupported hardware model", macOS(), func(c *framework.Configuration) { vz.Unknown["model"] = true }},
		{"no MAC address", linux(), func(c *framework.Configuration) { c.MAC = nil }},
		{"another address", linux(), func(c *framework.Configuration) { c.MAC = make(net.HardwareAddr, 8) }},
		{"a console that says nothing", linux(), func(c *framework.Configuration) { c.ConsoleOut = nil }},
		{"a console that hears nothing", linux(), func(c *framework.Configuration) { c.ConsoleIn = nil }},
	} {
		vz.Reset()
		test.change(&test.cfg)
		m, err := New(nil).New(test.cfg)
		if m != nil || code(err) != framework.CodeInvalidVirtualMachineConfiguration {
			t.Errorf("%s: %v, %v", test.name, m, err)
		}
	}
	vz.Reset()
	vz.No["Validate"] = true
	if _, err := New(nil).New(linux()); code(err) != framework.CodeInternal {
		t.Errorf("a configuration that is not valid, without an error: %v", err)
	}
}

func code(err error) framework.Code {
	var fault *framework.Error
	if !errors.As(err, &fault) {
		return 0
	}
	return fault.Code
}

func TestOptionalDevices(t *testing.T) {
	vz.Reset()
	cfg := linux()
	cfg.ConsoleIn, cfg.ConsoleOut, cfg.Entropy = nil, nil, false
	if _, err := New(nil).New(cfg); err != nil {
		t.Fatal(err)
	}
	for _, call := range vz.Calls {
		if strings.Contains(call, "Serial") || strings.Contains(call, "Entropy") {
			t.Errorf("%s, which was not asked for", call)
		}
	}
}

func TestMachineCalls(t *testing.T) {
	vz.Reset()
	m, err := New(nil).New(linux())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		calls []string
		fails string
		call  func() error
	}{
		{[]string{"Start()"}, "Start", m.Start},
		{[]string{"Pause()"}, "Pause", m.Pause},
		{[]string{"Resume()"}, "Resume", m.Resume},
		{[]string{"Stop()"}, "Stop", m.Stop},
		{[]string{"RequestStop()"}, "RequestStop", m.RequestStop},
		{[]string{"SaveMachineStateToPath(/saved)"}, "SaveMachineStateToPath", func() error { return m.Save("/saved") }},
		{[]string{"RestoreMachineStateFromURL(/saved)"}, "RestoreMachineStateFromURL", func() error { return m.Restore("/saved") }},
		{[]string{"NewMacKeyboardConfiguration()", "ValidateSaveRestoreSupport()"}, "ValidateSaveRestoreSupport", m.SaveRestoreSupport},
		{[]string{"CanStop()", "Stop()"}, "Stop", m.Close},
		{[]string{"Connect(1024)"}, "Connect", func() error { _, err := m.Connect(1024); return err }},
	} {
		vz.Reset()
		if err := test.call(); err != nil {
			t.Errorf("%s: %v", test.fails, err)
		}
		if !slices.Equal(vz.Calls, test.calls) {
			t.Errorf("calls %v, want %v", vz.Calls, test.calls)
		}
		vz.Fail[test.fails] = &vz.NSError{Domain: framework.Domain, Code: 12}
		if err := test.call(); code(err) != framework.CodeRestore {
			t.Errorf("%s failed: %v", test.fails, err)
		}
	}
	for name, call := range map[string]func() error{"RequestStop": m.RequestStop, "ValidateSaveRestoreSupport": m.SaveRestoreSupport} {
		vz.Reset()
		vz.No[name] = true
		if err := call(); code(err) != framework.CodeInternal {
			t.Errorf("%s answers no: %v", name, err)
		}
	}
	vz.Reset()
	vz.No["CanStop"] = true
	if err := m.Close(); err != nil || !slices.Equal(vz.Calls, []string{"CanStop()"}) {
		t.Errorf("Close of a machine that cannot be stopped: %v, calls %v", err, vz.Calls)
	}
}

// TestOldMacOS: the call that raises an exception there is not made.
func TestOldMacOS(t *testing.T) {
	vz.Reset()
	m, err := New(nil).New(linux())
	if err != nil {
		t.Fatal(err)
	}
	vz.Reset()
	vz.Fail["NewMacKeyboardConfiguration"] = vz.ErrUnsupportedOSVersion
	if err := m.SaveRestoreSupport(); !errors.Is(err, framework.ErrUnsupportedOS) || len(vz.Calls) != 1 {
		t.Errorf("SaveRestoreSupport: %v, calls %v", err, vz.Calls)
	}
}

func TestConnect(t *testing.T) {
	vz.Reset()
	m, err := New(nil).New(linux())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		err        error
		noListener bool
	}{
		{&vz.NSError{Domain: "NSPOSIXErrorDomain", Code: int(syscall.ECONNRESET)}, true},
		{&vz.NSError{Domain: "NSPOSIXErrorDomain", Code: int(syscall.ECONNREFUSED)}, true},
		{&vz.NSError{Domain: "NSPOSIXErrorDomain", Code: int(syscall.EMFILE)}, false},
		{&vz.NSError{Domain: framework.Domain, Code: int(syscall.ECONNRESET)}, false},
		{os.ErrClosed, false},
	} {
		vz.Fail["Connect"] = test.err
		conn, err := m.Connect(1)
		if conn != nil || err == nil || errors.Is(err, framework.ErrNoListener) != test.noListener {
			t.Errorf("%v: %v, %v", test.err, conn, err)
		}
	}
	vz.Reset()
	vz.No["SocketDevices"] = true
	if conn, err := m.Connect(1); conn != nil || err == nil {
		t.Errorf("without a device: %v, %v", conn, err)
	}
}

func TestStates(t *testing.T) {
	vz.Reset()
	m, err := New(nil).New(linux())
	if err != nil {
		t.Fatal(err)
	}
	for state := range vz.VirtualMachineStateRestoring + 1 {
		vz.States = state
		if got := m.State(); int(got) != int(state) {
			t.Errorf("state %d is %s", state, got)
		}
	}
	vz.States = 10
	if got := m.State(); got.String() != "state 10" {
		t.Errorf("a state of a later macOS is %s", got)
	}
	// Every machine of these tests listens to the one channel; one of them is enough.
	one := make(chan vz.VirtualMachineState, 2)
	one <- vz.VirtualMachineStateStarting
	one <- vz.VirtualMachineStateRunning
	changes := make(chan framework.State)
	go forward(one, changes)
	for _, want := range []framework.State{framework.StateStarting, framework.StateRunning} {
		if got := <-changes; got != want {
			t.Errorf("change to %s, want %s", got, want)
		}
	}
	close(one)
}

func TestTranslate(t *testing.T) {
	if err := translate("x", nil); err != nil {
		t.Errorf("nothing is translated to %v", err)
	}
	if err := translate("x", vz.ErrUnsupportedOSVersion); !errors.Is(err, framework.ErrUnsupportedOS) {
		t.Errorf("unsupported version: %v", err)
	}
	if err := translate("x", &fs.PathError{Op: "stat", Path: "/disk", Err: fs.ErrNotExist}); !errors.Is(err, fs.ErrNotExist) || code(err) != 0 {
		t.Errorf("missing file: %v", err)
	}
	err := translate("outer", translate("inner", &vz.NSError{Domain: framework.Domain, Code: -9, LocalizedDescription: "HostKey"}))
	if code(err) != framework.CodeHostKey || !strings.HasPrefix(err.Error(), "outer: inner: HostKey") {
		t.Errorf("translated twice: %v", err)
	}
}

func TestIdentifiersAndHost(t *testing.T) {
	vz.Reset()
	apple := New(func() (framework.Host, error) { return framework.Host{ID: "host"}, nil })
	if host, err := apple.Host(); err != nil || host.ID != "host" {
		t.Errorf("Host: %v, %v", host, err)
	}
	for os, want := range map[framework.GuestOS]string{framework.Linux: "generic", framework.MacOS: "mac"} {
		id, err := apple.NewIdentifier(os)
		clear(vz.Memory)
		if err != nil || string(id) != want {
			t.Errorf("%s: %q, %v", os, id, err)
		}
	}
	if _, err := apple.NewIdentifier("plan9"); code(err) != framework.CodeInvalidVirtualMachineConfiguration {
		t.Errorf("another guest OS: %v", err)
	}
	vz.Fail["NewGenericMachineIdentifier"] = vz.ErrUnsupportedOSVersion
	if id, err := apple.NewIdentifier(framework.Linux); id != nil || !errors.Is(err, framework.ErrUnsupportedOS) {
		t.Errorf("old macOS: %q, %v", id, err)
	}
}
