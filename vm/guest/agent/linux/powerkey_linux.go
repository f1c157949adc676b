// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/input-event-codes.h.
const (
	evKey    = 1
	keyPower = 116
)

// inputEventBytes is the size of struct input_event on 64-bit machines: a time of 16
// bytes, type and code of 2 each, a value of 4.
const inputEventBytes = 24

// PowerKey waits for the host to press the machine's power key, which is how a driver
// asks for an orderly end, and calls pressed once. On amd64 it is an ACPI button, read as
// an input device; on arm64 a GPIO line, which the cloud kernel has no key driver for, so
// it is read as a line. It returns when the key was pressed, ctx ended or the machine
// turns out to have no such key, and waits for what it started.
func PowerKey(ctx context.Context, pressed func()) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	files, err := openPowerInputs()
	if err != nil {
		return fmt.Errorf("power key: %w", err)
	}
	line, err := openPowerLine()
	if err != nil {
		return fmt.Errorf("power key: %w", err)
	}
	if line != nil {
		files = append(files, line)
	}
	if len(files) == 0 {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		for _, f := range files {
			f.Close()
		}
	})
	defer stop()
	hit := make(chan struct{}, len(files))
	var wg sync.WaitGroup
	for _, f := range files {
		wait := awaitKey
		if f == line {
			wait = awaitLine
		}
		wg.Go(func() {
			if wait(f) == nil {
				hit <- struct{}{}
			}
		})
	}
	all := make(chan struct{})
	go func() { wg.Wait(); close(all) }()
	select {
	case <-hit:
		pressed()
	case <-all:
	}
	for _, f := range files {
		f.Close()
	}
	<-all
	return nil
}

// openPowerInputs opens the input devices that have a power key.
func openPowerInputs() ([]*os.File, error) {
	paths, err := filepath.Glob("/sys/class/input/event*/device/capabilities/key")
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, path := range paths {
		bits, err := os.ReadFile(path)
		if err != nil || !hasKey(string(bits), keyPower) {
			continue
		}
		name := strings.Split(path, "/")[4]
		f, err := os.OpenFile(filepath.Join("/dev/input", name), os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// awaitKey reads input events until the power key goes down.
func awaitKey(f *os.File) error {
	buf := make([]byte, 16*inputEventBytes)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return err
		}
		for e := buf[:n-n%inputEventBytes]; len(e) > 0; e = e[inputEventBytes:] {
			kind, code := binary.NativeEndian.Uint16(e[16:]), binary.NativeEndian.Uint16(e[18:])
			if value := binary.NativeEndian.Uint32(e[20:]); kind == evKey && code == keyPower && value == 1 {
				return nil
			}
		}
	}
}

// Of linux/gpio.h, version 2 of its interface.
const (
	gpioGetLine     = 0xc250b407 // GPIO_V2_GET_LINE_IOCTL
	gpioFlagInput   = 1 << 2
	gpioFlagLow     = 1 << 1
	gpioFlagRising  = 1 << 4
	gpioEventBytes  = 48
	gpioMaxLines    = 64
	gpioMaxAttrs    = 10
	gpioNameBytes   = 32
	gpioActiveLowDT = 1 // GPIO_ACTIVE_LOW of the device tree bindings
)

type gpioLineRequest struct {
	offsets  [gpioMaxLines]uint32
	consumer [gpioNameBytes]byte
	config   struct {
		flags    uint64
		numAttrs uint32
		padding  [5]uint32
		attrs    [gpioMaxAttrs][3]uint64
	}
	numLines        uint32
	eventBufferSize uint32
	padding         [5]uint32
	fd              int32
}

// openPowerLine asks for the GPIO line that the device tree calls the power key. It
// returns nil where there is none.
func openPowerLine() (*os.File, error) {
	codes, err := filepath.Glob("/proc/device-tree/gpio-keys/*/linux,code")
	if err != nil {
		return nil, err
	}
	for _, path := range codes {
		code, err := os.ReadFile(path)
		if err != nil || len(code) != 4 || binary.BigEndian.Uint32(code) != keyPower {
			continue
		}
		gpios, err := os.ReadFile(filepath.Join(filepath.Dir(path), "gpios"))
		if err != nil || len(gpios) < 12 {
			continue
		}
		chip, err := gpioChip(gpios[:4])
		if err != nil {
			return nil, err
		}
		if chip == "" {
			continue
		}
		return requestLine(chip, binary.BigEndian.Uint32(gpios[4:]), binary.BigEndian.Uint32(gpios[8:])&gpioActiveLowDT != 0)
	}
	return nil, nil
}

// gpioChip finds the character device of the controller with a phandle.
func gpioChip(phandle []byte) (string, error) {
	paths, err := filepath.Glob("/sys/bus/gpio/devices/gpiochip*/of_node/phandle")
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		if have, err := os.ReadFile(path); err == nil && string(have) == string(phandle) {
			return filepath.Join("/dev", strings.Split(path, "/")[5]), nil
		}
	}
	return "", nil
}

func requestLine(chip string, offset uint32, activeLow bool) (*os.File, error) {
	f, err := os.Open(chip)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r gpioLineRequest
	r.offsets[0], r.numLines = offset, 1
	copy(r.consumer[:], "power key")
	r.config.flags = gpioFlagInput | gpioFlagRising
	if activeLow {
		r.config.flags |= gpioFlagLow
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), gpioGetLine, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return nil, fmt.Errorf("line %d of %s: %w", offset, chip, errno)
	}
	if err := unix.SetNonblock(int(r.fd), true); err != nil {
		_ = unix.Close(int(r.fd))
		return nil, err
	}
	return os.NewFile(uintptr(r.fd), "power line"), nil
}

// awaitLine reads one event of a GPIO line: only the edge that was asked for makes any.
func awaitLine(f *os.File) error {
	n, err := f.Read(make([]byte, gpioEventBytes))
	if err == nil && n != gpioEventBytes {
		err = errors.New("short event")
	}
	return err
}
