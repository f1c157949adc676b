// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build darwin && arm64 && cgo

package apple

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/Code-Hex/vz/v3"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// New gives Apple's framework. What it runs on is no business of the framework's, so
// the caller brings the function that finds it out.
func New(host func() (framework.Host, error)) framework.Framework { return binding{host} }

type binding struct {
	host func() (framework.Host, error)
}

func (b binding) Host() (framework.Host, error) { return b.host() }

// guest is what one guest operating system's machines are made of.
type guest struct {
	identifier  func() ([]byte, error)
	bootLoader  func(framework.Configuration) (vz.BootLoader, error)
	platform    func(framework.Configuration) (vz.PlatformConfiguration, error)
	peripherals func(*vz.VirtualMachineConfiguration) error
	caching     vz.DiskImageCachingMode
}

// guests holds the two. Their caching differs because Linux guests were seen to lose
// data on virtio disks cached "automatically", on Apple silicon and on every file
// system (utmapp/UTM #4840): lima (#2026), vfkit (crc-org/vfkit #76) and tart (#675) all
// went to "cached" for it. macOS guests were not seen to; automatic is the framework's
// own choice.
var guests = map[framework.GuestOS]guest{
	framework.Linux: {NewMachineIdentifier, linuxBootLoader, genericPlatform, noPeripherals, vz.DiskImageCachingModeCached},
	framework.MacOS: {NewMacMachineIdentifier, macBootLoader, macPlatform, macPeripherals, vz.DiskImageCachingModeAutomatic},
}

// devices are what every machine has, or may have.
var devices = []struct {
	name string
	set  func(*vz.VirtualMachineConfiguration, framework.Configuration) error
}{{"disks", setDisks}, {"network", setNetwork}, {"console", setConsole}, {"entropy", setEntropy}, {"vsock", setSocket}}

// synchronization is what a guest's flush becomes. Fsync hands the data to the drive in
// order, so that a crash of the shim or of macOS costs a guest's file system nothing.
// Full waits for the drive's own cache too, which only loss of power asks for: machines
// do not outlive that, and what does, a snapshot, is synchronized when it is published.
const synchronization = vz.DiskImageSynchronizationModeFsync

// The display of a macOS guest is the one known to be savable (tailscale's tailmac).
const displayWidth, displayHeight, displayPixelsPerInch = 1920, 1200, 80

// states names the framework's states in ours.
var states = map[vz.VirtualMachineState]framework.State{
	vz.VirtualMachineStateStopped:   framework.StateStopped,
	vz.VirtualMachineStateRunning:   framework.StateRunning,
	vz.VirtualMachineStatePaused:    framework.StatePaused,
	vz.VirtualMachineStateError:     framework.StateError,
	vz.VirtualMachineStateStarting:  framework.StateStarting,
	vz.VirtualMachineStatePausing:   framework.StatePausing,
	vz.VirtualMachineStateResuming:  framework.StateResuming,
	vz.VirtualMachineStateStopping:  framework.StateStopping,
	vz.VirtualMachineStateSaving:    framework.StateSaving,
	vz.VirtualMachineStateRestoring: framework.StateRestoring,
}

// noListener are the errors of a connection that the guest turned down. A reset is what
// others report while nothing listens on the port (Lakr233/vphone-cli #192); the other is
// the usual name for the same. We have seen neither.
var noListener = map[framework.Code]bool{framework.Code(syscall.ECONNRESET): true, framework.Code(syscall.ECONNREFUSED): true}

func (binding) NewIdentifier(os framework.GuestOS) ([]byte, error) {
	kind, known := guests[os]
	if !known {
		return nil, invalid("guest OS %q", os)
	}
	return kind.identifier()
}

// NewMachineIdentifier makes an identifier for a Linux guest's generic platform.
func NewMachineIdentifier() ([]byte, error) { return opaque(vz.NewGenericMachineIdentifier()) }

// NewMacMachineIdentifier makes an identifier for a macOS guest's Mac platform.
func NewMacMachineIdentifier() ([]byte, error) { return opaque(vz.NewMacMachineIdentifier()) }

// opaque copies an identifier's bytes: they lie in the framework's memory.
func opaque[T interface{ DataRepresentation() []byte }](id T, err error) ([]byte, error) {
	if err != nil {
		return nil, translate("new machine identifier", err)
	}
	return bytes.Clone(id.DataRepresentation()), nil
}

func (binding) New(cfg framework.Configuration) (framework.Machine, error) {
	kind, known := guests[cfg.GuestOS]
	if !known {
		return nil, invalid("guest OS %q", cfg.GuestOS)
	}
	bootLoader, err := kind.bootLoader(cfg)
	if err != nil {
		return nil, translate("boot loader", err)
	}
	platform, err := kind.platform(cfg)
	if err != nil {
		return nil, translate("platform", err)
	}
	config, err := vz.NewVirtualMachineConfiguration(bootLoader, cfg.CPUs, cfg.MemoryBytes)
	if err != nil {
		return nil, translate("new configuration", err)
	}
	config.SetPlatformVirtualMachineConfiguration(platform)
	if err := kind.peripherals(config); err != nil {
		return nil, translate("peripherals", err)
	}
	for _, device := range devices {
		if err := device.set(config, cfg); err != nil {
			return nil, translate(device.name, err)
		}
	}
	if err := answered(config.Validate()); err != nil {
		return nil, translate("validate configuration", err)
	}
	made, err := vz.NewVirtualMachine(config)
	if err != nil {
		return nil, translate("new machine", err)
	}
	m := &machine{made, config, [...]*os.File{cfg.Network, cfg.ConsoleIn, cfg.ConsoleOut}, make(chan framework.State)}
	machines.Store(m, nil)
	go forward(made.StateChangedNotify(), m.changes)
	return m, nil
}

func linuxBootLoader(cfg framework.Configuration) (vz.BootLoader, error) {
	return vz.NewLinuxBootLoader(cfg.Kernel, vz.WithInitrd(cfg.Initramfs), vz.WithCommandLine(cfg.CommandLine))
}

func macBootLoader(framework.Configuration) (vz.BootLoader, error) { return vz.NewMacOSBootLoader() }

// genericPlatform guards what the binding does not: it panics on an empty identifier,
// and hands the framework nil, which it answers with an exception, for one that the
// framework does not know. macPlatform does the same.
func genericPlatform(cfg framework.Configuration) (vz.PlatformConfiguration, error) {
	if len(cfg.MachineIdentifier) == 0 {
		return nil, invalid("no machine identifier")
	}
	id, err := vz.NewGenericMachineIdentifierWithData(cfg.MachineIdentifier)
	if err != nil {
		return nil, err
	}
	if len(id.DataRepresentation()) == 0 {
		return nil, invalid("not a generic machine identifier")
	}
	return vz.NewGenericPlatformConfiguration(vz.WithGenericMachineIdentifier(id))
}

func macPlatform(cfg framework.Configuration) (vz.PlatformConfiguration, error) {
	if len(cfg.MachineIdentifier) == 0 || len(cfg.HardwareModel) == 0 {
		return nil, invalid("no machine identifier or no hardware model")
	}
	id, idErr := vz.NewMacMachineIdentifierWithData(cfg.MachineIdentifier)
	model, modelErr := vz.NewMacHardwareModelWithData(cfg.HardwareModel)
	storage, storageErr := vz.NewMacAuxiliaryStorage(cfg.AuxiliaryStorage)
	if err := errors.Join(idErr, modelErr, storageErr); err != nil {
		return nil, err
	}
	if len(id.DataRepresentation()) == 0 || !model.Supported() {
		return nil, invalid("not a Mac machine identifier, or a hardware model that this host does not support")
	}
	return vz.NewMacPlatformConfiguration(vz.WithMacHardwareModel(model), vz.WithMacMachineIdentifier(id), vz.WithMacAuxiliaryStorage(storage))
}

func noPeripherals(*vz.VirtualMachineConfiguration) error { return nil }

func macPeripherals(config *vz.VirtualMachineConfiguration) error {
	graphics, graphicsErr := vz.NewMacGraphicsDeviceConfiguration()
	display, displayErr := vz.NewMacGraphicsDisplayConfiguration(displayWidth, displayHeight, displayPixelsPerInch)
	keyboard, keyboardErr := vz.NewMacKeyboardConfiguration()
	trackpad, trackpadErr := vz.NewMacTrackpadConfiguration()
	if err := errors.Join(graphicsErr, displayErr, keyboardErr, trackpadErr); err != nil {
		return err
	}
	graphics.SetDisplays(display)
	config.SetGraphicsDevicesVirtualMachineConfiguration([]vz.GraphicsDeviceConfiguration{graphics})
	config.SetKeyboardsVirtualMachineConfiguration([]vz.KeyboardConfiguration{keyboard})
	config.SetPointingDevicesVirtualMachineConfiguration([]vz.PointingDeviceConfiguration{trackpad})
	return nil
}

func setDisks(config *vz.VirtualMachineConfiguration, cfg framework.Configuration) error {
	caching := guests[cfg.GuestOS].caching
	var blocks []vz.StorageDeviceConfiguration
	for _, disk := range cfg.Disks {
		attachment, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(disk.Path, disk.ReadOnly, caching, synchronization)
		if err != nil {
			return translate(disk.Path, err)
		}
		block, err := vz.NewVirtioBlockDeviceConfiguration(attachment)
		if err != nil {
			return translate(disk.Path, err)
		}
		if err := block.SetBlockDeviceIdentifier(disk.Serial); err != nil {
			return translate(disk.Path, err)
		}
		blocks = append(blocks, block)
	}
	config.SetStorageDevicesVirtualMachineConfiguration(blocks)
	return nil
}

func setNetwork(config *vz.VirtualMachineConfiguration, cfg framework.Configuration) error {
	attachment, err := vz.NewFileHandleNetworkDeviceAttachment(cfg.Network)
	if err != nil {
		return err
	}
	device, deviceErr := vz.NewVirtioNetworkDeviceConfiguration(attachment)
	address, addressErr := vz.NewMACAddress(cfg.MAC)
	if err := errors.Join(deviceErr, addressErr); err != nil {
		return err
	}
	// For what is no address the binding holds nil and says nothing.
	if len(cfg.MAC) == 0 || !bytes.Equal(address.HardwareAddr(), cfg.MAC) {
		return invalid("MAC address %q", cfg.MAC)
	}
	device.SetMACAddress(address)
	config.SetNetworkDevicesVirtualMachineConfiguration([]*vz.VirtioNetworkDeviceConfiguration{device})
	return nil
}

func setConsole(config *vz.VirtualMachineConfiguration, cfg framework.Configuration) error {
	if cfg.ConsoleIn == nil && cfg.ConsoleOut == nil {
		return nil
	}
	if cfg.ConsoleIn == nil || cfg.ConsoleOut == nil {
		return invalid("a console with one end")
	}
	attachment, err := vz.NewFileHandleSerialPortAttachment(cfg.ConsoleIn, cfg.ConsoleOut)
	if err != nil {
		return err
	}
	port, err := vz.NewVirtioConsoleDeviceSerialPortConfiguration(attachment)
	if err != nil {
		return err
	}
	config.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{port})
	return nil
}

func setEntropy(config *vz.VirtualMachineConfiguration, cfg framework.Configuration) error {
	if !cfg.Entropy {
		return nil
	}
	device, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return err
	}
	config.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{device})
	return nil
}

func setSocket(config *vz.VirtualMachineConfiguration, _ framework.Configuration) error {
	device, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return err
	}
	config.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{device})
	return nil
}

// machine is a machine with what must not be collected while it lives: the binding
// does not duplicate the descriptors of files (Code-Hex/vz #213).
type machine struct {
	machine *vz.VirtualMachine
	config  *vz.VirtualMachineConfiguration
	files   [3]*os.File
	changes chan framework.State
}

// machines keeps every machine of this process: the binding's finalizer would release
// one whose last method is still waiting for the framework.
var machines sync.Map

// forward ends with the process, as the binding's channel does. That one has no bound,
// so a state waits there when nobody reads.
func forward(from <-chan vz.VirtualMachineState, to chan<- framework.State) {
	for state := range from {
		to <- named(state)
	}
}

// named leaves a state that a later macOS brings its number, which none of ours has.
func named(state vz.VirtualMachineState) framework.State {
	name, known := states[state]
	if !known {
		return framework.State(state)
	}
	return name
}

func (m *machine) State() framework.State          { return named(m.machine.State()) }
func (m *machine) Changes() <-chan framework.State { return m.changes }
func (m *machine) Start() error                    { return translate("start", m.machine.Start()) }
func (m *machine) Pause() error                    { return translate("pause", m.machine.Pause()) }
func (m *machine) Resume() error                   { return translate("resume", m.machine.Resume()) }
func (m *machine) RequestStop() error {
	return translate("request stop", answered(m.machine.RequestStop()))
}
func (m *machine) Stop() error { return translate("stop", m.machine.Stop()) }

func (m *machine) Save(path string) error {
	return translate("save", m.machine.SaveMachineStateToPath(path))
}

func (m *machine) Restore(path string) error {
	return translate("restore", m.machine.RestoreMachineStateFromURL(path))
}

// SaveRestoreSupport asks for a Mac keyboard first: that call is of macOS 14 too and says
// so when it is missing, where the binding's own raises an exception.
func (m *machine) SaveRestoreSupport() error {
	if _, err := vz.NewMacKeyboardConfiguration(); err != nil {
		return translate("save and restore", err)
	}
	return translate("save and restore", answered(m.config.ValidateSaveRestoreSupport()))
}

func (m *machine) Connect(port uint32) (net.Conn, error) {
	sockets := m.machine.SocketDevices()
	if len(sockets) == 0 {
		return nil, invalid("no socket device")
	}
	conn, err := sockets[0].Connect(port)
	if err != nil {
		return nil, refused(translate(fmt.Sprintf("connect to port %d", port), err))
	}
	return conn, nil
}

func (m *machine) Close() error {
	if m.machine.CanStop() {
		return m.Stop()
	}
	return nil
}

// refused adds ErrNoListener to an error that means it.
func refused(err error) error {
	var fault *framework.Error
	if errors.As(err, &fault) && fault.Domain == "NSPOSIXErrorDomain" && noListener[fault.Code] {
		return fmt.Errorf("%w: %w", framework.ErrNoListener, err)
	}
	return err
}

// translate gives the framework's errors in our types. What is neither of the two, a
// file that does not exist, stays what it is.
func translate(doing string, err error) error {
	if err == nil {
		return nil
	}
	var fault *vz.NSError
	if errors.As(err, &fault) {
		description := fmt.Sprintf("%s %s", fault.LocalizedDescription, fault.UserInfo)
		err = &framework.Error{Domain: fault.Domain, Code: framework.Code(fault.Code), Description: description}
	}
	if errors.Is(err, vz.ErrUnsupportedOSVersion) {
		err = framework.ErrUnsupportedOS
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// answered is for calls that answer yes or no beside the error.
func answered(yes bool, err error) error {
	if err == nil && !yes {
		return framework.NewError(framework.CodeInternal, "refused without an error")
	}
	return err
}

func invalid(format string, args ...any) error {
	return framework.NewError(framework.CodeInvalidVirtualMachineConfiguration, format, args...)
}
