// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package vz stands in for github.com/Code-Hex/vz/v3 where that cannot be built. It has
// what the binding uses of it, with the same signatures: the binding is type-checked
// against the real one and builds against this one. It writes down what it is called
// with and fails where it is told to.
package vz

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

var (
	// Calls are the calls so far.
	Calls []string
	// Fail has the errors of calls that fail, and No the calls that answer no.
	Fail = map[string]error{}
	No   = map[string]bool{}
	// States is what every machine's state is, and Notify where it tells of changes.
	States = VirtualMachineStateStopped
	Notify = make(chan VirtualMachineState)
	// Unknown are identifiers and hardware models that the framework does not know.
	Unknown = map[string]bool{}

	// Memory is the framework's, where new identifiers lie: it may be used again.
	Memory []byte

	ErrUnsupportedOSVersion = errors.New("unsupported macOS version")
)

// Reset forgets everything.
func Reset() {
	Calls, States = nil, VirtualMachineStateStopped
	clear(Fail)
	clear(No)
	clear(Unknown)
}

func call(name string, args ...any) (object, error) {
	texts := make([]string, len(args))
	for i, arg := range args {
		switch arg := arg.(type) {
		case *os.File:
			texts[i] = arg.Name()
		default:
			texts[i] = fmt.Sprint(arg)
		}
	}
	text := name + "(" + strings.Join(texts, ", ") + ")"
	Calls = append(Calls, text)
	return object{text}, Fail[name]
}

func answer(name string, args ...any) (bool, error) {
	_, err := call(name, args...)
	return err == nil && !No[name], err
}

// made is nil with an error, as the real constructors' results are.
func made[T any](build func(object) *T, name string, args ...any) (*T, error) {
	o, err := call(name, args...)
	if err != nil {
		return nil, err
	}
	return build(o), nil
}

// object is an object of the framework: the call that made it.
type object struct{ text string }

func (o object) String() string {
	name, _, _ := strings.Cut(o.text, "(")
	return name
}

// NSError is an error of the framework.
type NSError struct {
	Domain               string
	Code                 int
	LocalizedDescription string
	UserInfo             string
}

func (e *NSError) Error() string { return "NSError " + e.LocalizedDescription }

type (
	BootLoader                  interface{ bootLoader() }
	PlatformConfiguration       interface{ platform() }
	StorageDeviceAttachment     interface{ storage() }
	StorageDeviceConfiguration  interface{ storageDevice() }
	NetworkDeviceAttachment     interface{ network() }
	SerialPortAttachment        interface{ serial() }
	SocketDeviceConfiguration   interface{ socket() }
	GraphicsDeviceConfiguration interface{ graphics() }
	KeyboardConfiguration       interface{ keyboard() }
	PointingDeviceConfiguration interface{ pointing() }
)

type (
	LinuxBootLoader                            struct{ object }
	MacOSBootLoader                            struct{ object }
	GenericPlatformConfiguration               struct{ object }
	MacPlatformConfiguration                   struct{ object }
	DiskImageStorageDeviceAttachment           struct{ object }
	VirtioBlockDeviceConfiguration             struct{ object }
	FileHandleNetworkDeviceAttachment          struct{ object }
	VirtioNetworkDeviceConfiguration           struct{ object }
	FileHandleSerialPortAttachment             struct{ object }
	VirtioConsoleDeviceSerialPortConfiguration struct{ object }
	VirtioEntropyDeviceConfiguration           struct{ object }
	VirtioSocketDeviceConfiguration            struct{ object }
	MacGraphicsDeviceConfiguration             struct{ object }
	MacGraphicsDisplayConfiguration            struct{ object }
	MacKeyboardConfiguration                   struct{ object }
	MacTrackpadConfiguration                   struct{ object }
	MacAuxiliaryStorage                        struct{ object }
	VirtualMachineConfiguration                struct{ object }
	VirtualMachine                             struct{ object }
	VirtioSocketDevice                         struct{ object }
	VirtioSocketConnection                     struct{ net.Conn }
	MACAddress                                 struct{ address net.HardwareAddr }
	GenericMachineIdentifier                   struct{ identifier }
	MacMachineIdentifier                       struct{ identifier }
	MacHardwareModel                           struct{ identifier }
)

func (*LinuxBootLoader) bootLoader()                   {}
func (*MacOSBootLoader) bootLoader()                   {}
func (*GenericPlatformConfiguration) platform()        {}
func (*MacPlatformConfiguration) platform()            {}
func (*DiskImageStorageDeviceAttachment) storage()     {}
func (*VirtioBlockDeviceConfiguration) storageDevice() {}
func (*FileHandleNetworkDeviceAttachment) network()    {}
func (*FileHandleSerialPortAttachment) serial()        {}
func (*VirtioSocketDeviceConfiguration) socket()       {}
func (*MacGraphicsDeviceConfiguration) graphics()      {}
func (*MacKeyboardConfiguration) keyboard()            {}
func (*MacTrackpadConfiguration) pointing()            {}

type identifier struct{ data []byte }

func (i identifier) DataRepresentation() []byte { return i.data }
func (i identifier) String() string             { return string(i.data) }

func fresh(text string) identifier {
	Memory = []byte(text)
	return identifier{Memory}
}

// known is what the framework makes of bytes: the binding indexes the first, and has
// nothing for those that the framework does not know.
func known(b []byte) identifier {
	if Unknown[string(b[0:1])+string(b[1:])] {
		return identifier{}
	}
	return identifier{b}
}

func NewGenericMachineIdentifier() (*GenericMachineIdentifier, error) {
	return made(func(object) *GenericMachineIdentifier {
		return &GenericMachineIdentifier{fresh("generic")}
	}, "NewGenericMachineIdentifier")
}

func NewGenericMachineIdentifierWithData(b []byte) (*GenericMachineIdentifier, error) {
	return made(func(object) *GenericMachineIdentifier { return &GenericMachineIdentifier{known(b)} }, "NewGenericMachineIdentifierWithData", string(b))
}

func NewMacMachineIdentifier() (*MacMachineIdentifier, error) {
	return made(func(object) *MacMachineIdentifier { return &MacMachineIdentifier{fresh("mac")} }, "NewMacMachineIdentifier")
}

func NewMacMachineIdentifierWithData(b []byte) (*MacMachineIdentifier, error) {
	return made(func(object) *MacMachineIdentifier { return &MacMachineIdentifier{known(b)} }, "NewMacMachineIdentifierWithData", string(b))
}

func NewMacHardwareModelWithData(b []byte) (*MacHardwareModel, error) {
	return made(func(object) *MacHardwareModel { return &MacHardwareModel{known(b)} }, "NewMacHardwareModelWithData", string(b))
}

func (m *MacHardwareModel) Supported() bool { return len(m.data) > 0 }

type NewMacAuxiliaryStorageOption func(*MacAuxiliaryStorage) error

func NewMacAuxiliaryStorage(path string, _ ...NewMacAuxiliaryStorageOption) (*MacAuxiliaryStorage, error) {
	return made(func(o object) *MacAuxiliaryStorage { return &MacAuxiliaryStorage{o} }, "NewMacAuxiliaryStorage", path)
}

// The real options are functions of the object that is made; here they are its text.
type (
	LinuxBootLoaderOption              string
	GenericPlatformConfigurationOption string
	MacPlatformConfigurationOption     string
)

func WithInitrd(path string) LinuxBootLoaderOption      { return LinuxBootLoaderOption("initrd " + path) }
func WithCommandLine(line string) LinuxBootLoaderOption { return LinuxBootLoaderOption("line " + line) }

func WithGenericMachineIdentifier(id *GenericMachineIdentifier) GenericPlatformConfigurationOption {
	return GenericPlatformConfigurationOption("id " + id.String())
}

func WithMacHardwareModel(m *MacHardwareModel) MacPlatformConfigurationOption {
	return MacPlatformConfigurationOption("model " + m.String())
}

func WithMacMachineIdentifier(id *MacMachineIdentifier) MacPlatformConfigurationOption {
	return MacPlatformConfigurationOption("id " + id.String())
}

func WithMacAuxiliaryStorage(s *MacAuxiliaryStorage) MacPlatformConfigurationOption {
	return MacPlatformConfigurationOption(s.text)
}

func NewLinuxBootLoader(kernel string, opts ...LinuxBootLoaderOption) (*LinuxBootLoader, error) {
	return made(func(o object) *LinuxBootLoader { return &LinuxBootLoader{o} }, "NewLinuxBootLoader", kernel, opts)
}

func NewMacOSBootLoader() (*MacOSBootLoader, error) {
	return made(func(o object) *MacOSBootLoader { return &MacOSBootLoader{o} }, "NewMacOSBootLoader")
}

func NewGenericPlatformConfiguration(opts ...GenericPlatformConfigurationOption) (*GenericPlatformConfiguration, error) {
	return made(func(o object) *GenericPlatformConfiguration { return &GenericPlatformConfiguration{o} }, "NewGenericPlatformConfiguration", opts)
}

func NewMacPlatformConfiguration(opts ...MacPlatformConfigurationOption) (*MacPlatformConfiguration, error) {
	return made(func(o object) *MacPlatformConfiguration { return &MacPlatformConfiguration{o} }, "NewMacPlatformConfiguration", opts)
}

func NewMacGraphicsDeviceConfiguration() (*MacGraphicsDeviceConfiguration, error) {
	return made(func(o object) *MacGraphicsDeviceConfiguration { return &MacGraphicsDeviceConfiguration{o} }, "NewMacGraphicsDeviceConfiguration")
}

func (*MacGraphicsDeviceConfiguration) SetDisplays(displays ...*MacGraphicsDisplayConfiguration) {
	call("SetDisplays", displays)
}

func NewMacGraphicsDisplayConfiguration(width, height, pixelsPerInch int64) (*MacGraphicsDisplayConfiguration, error) {
	return made(func(o object) *MacGraphicsDisplayConfiguration { return &MacGraphicsDisplayConfiguration{o} }, "NewMacGraphicsDisplayConfiguration", width, height, pixelsPerInch)
}

func NewMacKeyboardConfiguration() (*MacKeyboardConfiguration, error) {
	return made(func(o object) *MacKeyboardConfiguration { return &MacKeyboardConfiguration{o} }, "NewMacKeyboardConfiguration")
}

func NewMacTrackpadConfiguration() (*MacTrackpadConfiguration, error) {
	return made(func(o object) *MacTrackpadConfiguration { return &MacTrackpadConfiguration{o} }, "NewMacTrackpadConfiguration")
}

type (
	DiskImageCachingMode         int
	DiskImageSynchronizationMode int
)

const (
	DiskImageCachingModeAutomatic DiskImageCachingMode = iota
	DiskImageCachingModeUncached
	DiskImageCachingModeCached
)

const (
	DiskImageSynchronizationModeFull DiskImageSynchronizationMode = 1 + iota
	DiskImageSynchronizationModeFsync
	DiskImageSynchronizationModeNone
)

func (m DiskImageCachingMode) String() string {
	return [...]string{"automatic", "uncached", "cached"}[m]
}

func (m DiskImageSynchronizationMode) String() string {
	return [...]string{"", "full", "fsync", "none"}[m]
}

func NewDiskImageStorageDeviceAttachmentWithCacheAndSync(path string, readOnly bool, caching DiskImageCachingMode, sync DiskImageSynchronizationMode) (*DiskImageStorageDeviceAttachment, error) {
	return made(func(o object) *DiskImageStorageDeviceAttachment { return &DiskImageStorageDeviceAttachment{o} }, "NewDiskImageStorageDeviceAttachmentWithCacheAndSync", path, readOnly, caching, sync)
}

func NewVirtioBlockDeviceConfiguration(attachment StorageDeviceAttachment) (*VirtioBlockDeviceConfiguration, error) {
	return made(func(o object) *VirtioBlockDeviceConfiguration { return &VirtioBlockDeviceConfiguration{o} }, "NewVirtioBlockDeviceConfiguration", attachment)
}

func (d *VirtioBlockDeviceConfiguration) SetBlockDeviceIdentifier(id string) error {
	_, err := call("SetBlockDeviceIdentifier", id)
	return err
}

func NewFileHandleNetworkDeviceAttachment(file *os.File) (*FileHandleNetworkDeviceAttachment, error) {
	return made(func(o object) *FileHandleNetworkDeviceAttachment { return &FileHandleNetworkDeviceAttachment{o} }, "NewFileHandleNetworkDeviceAttachment", file)
}

func NewVirtioNetworkDeviceConfiguration(attachment NetworkDeviceAttachment) (*VirtioNetworkDeviceConfiguration, error) {
	return made(func(o object) *VirtioNetworkDeviceConfiguration { return &VirtioNetworkDeviceConfiguration{o} }, "NewVirtioNetworkDeviceConfiguration", attachment)
}

func (*VirtioNetworkDeviceConfiguration) SetMACAddress(address *MACAddress) {
	call("SetMACAddress", address.address)
}

func NewMACAddress(address net.HardwareAddr) (*MACAddress, error) {
	if len(address) != 6 {
		address = nil
	}
	return made(func(object) *MACAddress { return &MACAddress{address} }, "NewMACAddress", address)
}

func (a *MACAddress) HardwareAddr() net.HardwareAddr { return a.address }

func NewFileHandleSerialPortAttachment(read, write *os.File) (*FileHandleSerialPortAttachment, error) {
	return made(func(o object) *FileHandleSerialPortAttachment { return &FileHandleSerialPortAttachment{o} }, "NewFileHandleSerialPortAttachment", read, write)
}

func NewVirtioConsoleDeviceSerialPortConfiguration(attachment SerialPortAttachment) (*VirtioConsoleDeviceSerialPortConfiguration, error) {
	return made(func(o object) *VirtioConsoleDeviceSerialPortConfiguration {
		return &VirtioConsoleDeviceSerialPortConfiguration{o}
	}, "NewVirtioConsoleDeviceSerialPortConfiguration", attachment)
}

func NewVirtioEntropyDeviceConfiguration() (*VirtioEntropyDeviceConfiguration, error) {
	return made(func(o object) *VirtioEntropyDeviceConfiguration { return &VirtioEntropyDeviceConfiguration{o} }, "NewVirtioEntropyDeviceConfiguration")
}

func NewVirtioSocketDeviceConfiguration() (*VirtioSocketDeviceConfiguration, error) {
	return made(func(o object) *VirtioSocketDeviceConfiguration { return &VirtioSocketDeviceConfiguration{o} }, "NewVirtioSocketDeviceConfiguration")
}
