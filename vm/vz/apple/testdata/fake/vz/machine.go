// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import "net"

func NewVirtualMachineConfiguration(bootLoader BootLoader, cpu uint, memorySize uint64) (*VirtualMachineConfiguration, error) {
	return made(func(o object) *VirtualMachineConfiguration { return &VirtualMachineConfiguration{o} }, "NewVirtualMachineConfiguration", bootLoader, cpu, memorySize)
}

func (*VirtualMachineConfiguration) Validate() (bool, error) { return answer("Validate") }

func (*VirtualMachineConfiguration) ValidateSaveRestoreSupport() (bool, error) {
	return answer("ValidateSaveRestoreSupport")
}

func (*VirtualMachineConfiguration) SetPlatformVirtualMachineConfiguration(c PlatformConfiguration) {
	call("SetPlatform", c)
}

func (*VirtualMachineConfiguration) SetGraphicsDevicesVirtualMachineConfiguration(cs []GraphicsDeviceConfiguration) {
	call("SetGraphicsDevices", cs)
}

func (*VirtualMachineConfiguration) SetKeyboardsVirtualMachineConfiguration(cs []KeyboardConfiguration) {
	call("SetKeyboards", cs)
}

func (*VirtualMachineConfiguration) SetPointingDevicesVirtualMachineConfiguration(cs []PointingDeviceConfiguration) {
	call("SetPointingDevices", cs)
}

func (*VirtualMachineConfiguration) SetStorageDevicesVirtualMachineConfiguration(cs []StorageDeviceConfiguration) {
	call("SetStorageDevices", cs)
}

func (*VirtualMachineConfiguration) SetNetworkDevicesVirtualMachineConfiguration(cs []*VirtioNetworkDeviceConfiguration) {
	call("SetNetworkDevices", cs)
}

func (*VirtualMachineConfiguration) SetSerialPortsVirtualMachineConfiguration(cs []*VirtioConsoleDeviceSerialPortConfiguration) {
	call("SetSerialPorts", cs)
}

func (*VirtualMachineConfiguration) SetEntropyDevicesVirtualMachineConfiguration(cs []*VirtioEntropyDeviceConfiguration) {
	call("SetEntropyDevices", cs)
}

func (*VirtualMachineConfiguration) SetSocketDevicesVirtualMachineConfiguration(cs []SocketDeviceConfiguration) {
	call("SetSocketDevices", cs)
}

type VirtualMachineState int

const (
	VirtualMachineStateStopped VirtualMachineState = iota
	VirtualMachineStateRunning
	VirtualMachineStatePaused
	VirtualMachineStateError
	VirtualMachineStateStarting
	VirtualMachineStatePausing
	VirtualMachineStateResuming
	VirtualMachineStateStopping
	VirtualMachineStateSaving
	VirtualMachineStateRestoring
)

func NewVirtualMachine(config *VirtualMachineConfiguration) (*VirtualMachine, error) {
	return made(func(o object) *VirtualMachine { return &VirtualMachine{o} }, "NewVirtualMachine", config)
}

type VirtualMachineStartOption func() error

func (*VirtualMachine) State() VirtualMachineState                     { return States }
func (*VirtualMachine) StateChangedNotify() <-chan VirtualMachineState { return Notify }

func (*VirtualMachine) Start(...VirtualMachineStartOption) error { return plain("Start") }
func (*VirtualMachine) Pause() error                             { return plain("Pause") }
func (*VirtualMachine) Resume() error                            { return plain("Resume") }
func (*VirtualMachine) Stop() error                              { return plain("Stop") }
func (*VirtualMachine) RequestStop() (bool, error)               { return answer("RequestStop") }

func (*VirtualMachine) CanStop() bool {
	yes, _ := answer("CanStop")
	return yes
}

func (*VirtualMachine) SaveMachineStateToPath(path string) error {
	return plain("SaveMachineStateToPath", path)
}

func (*VirtualMachine) RestoreMachineStateFromURL(path string) error {
	return plain("RestoreMachineStateFromURL", path)
}

func (*VirtualMachine) SocketDevices() []*VirtioSocketDevice {
	if No["SocketDevices"] {
		return nil
	}
	return []*VirtioSocketDevice{{}}
}

func (*VirtioSocketDevice) Connect(port uint32) (*VirtioSocketConnection, error) {
	if err := plain("Connect", port); err != nil {
		return nil, err
	}
	conn, _ := net.Pipe()
	return &VirtioSocketConnection{conn}, nil
}

func plain(name string, args ...any) error {
	_, err := call(name, args...)
	return err
}
