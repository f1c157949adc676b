// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func someHeader() saveHeader {
	return saveHeader{HostID: "mac", User: "501", OSBuild: "24F74", Bytes: 3, SHA256: "00", Shape: shape{Engine: "none", CPUs: 2, Disks: []diskShape{{Bytes: 512, Serial: "scratch"}}}}
}

func TestHeader(t *testing.T) {
	want := someHeader()
	b, err := encodeHeader(want)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != headerBytes {
		t.Fatalf("%d bytes, want %d", len(b), headerBytes)
	}
	got, err := decodeHeader(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, %v, want %+v", got, err, want)
	}
	want.Shape.CommandLine = strings.Repeat("x", headerBytes)
	if _, err := encodeHeader(want); err == nil {
		t.Error("a header of more than its size was encoded")
	}
	for name, damage := range map[string]func([]byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"short":           func(b []byte) []byte { return b[:headerBytes-1] },
		"zeros":           func([]byte) []byte { return make([]byte, headerBytes) },
		"magic":           func(b []byte) []byte { b[0]++; return b },
		"version":         func(b []byte) []byte { b[11]++; return b },
		"length":          func(b []byte) []byte { b[12] = 0xff; return b },
		"length by one":   func(b []byte) []byte { b[15]++; return b },
		"text":            func(b []byte) []byte { b[17]++; return b },
		"text behind":     func(b []byte) []byte { b[headerBytes-1] = 1; return b },
		"unknown field":   func(b []byte) []byte { return bytes.Replace(b, []byte("hostID"), []byte("hostIE"), 1) },
		"negative length": func(b []byte) []byte { return bytes.Replace(b, []byte(`"bytes":3`), []byte(`"bytes":-`), 1) },
	} {
		if _, err := decodeHeader(damage(bytes.Clone(b))); !errors.Is(err, errDamaged) {
			t.Errorf("%s: %v, want errDamaged", name, err)
		}
	}
}

// FuzzHeader: whatever is in a file, it is a header that encodes again or damage.
func FuzzHeader(f *testing.F) {
	b, err := encodeHeader(someHeader())
	if err != nil {
		f.Fatal(err)
	}
	b = bytes.TrimRight(b, "\x00")
	f.Add(b[:16], b[16:], false)
	f.Add(b[:16], b[16:], true)
	f.Add([]byte(saveMagic), []byte(nil), false)
	f.Fuzz(func(t *testing.T, prefix, text []byte, lengthFits bool) {
		// Headers are of one size, and most of what is interesting comes behind a length
		// that fits: the fuzzer need not find out about either.
		b := make([]byte, headerBytes)
		n := copy(b, prefix)
		if lengthFits {
			copy(b, saveMagic)
			binary.BigEndian.PutUint32(b[8:], saveVersion)
			binary.BigEndian.PutUint32(b[12:], uint32(len(text)))
			n = 16
		}
		copy(b[n:], text)
		h, err := decodeHeader(b)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatalf("%v is no errDamaged", err)
			}
			return
		}
		again, err := encodeHeader(h)
		if err != nil {
			return // what JSON escapes may not fit any more
		}
		if g, err := decodeHeader(again); err != nil || !reflect.DeepEqual(g, h) {
			t.Fatalf("%+v became %+v, %v", h, g, err)
		}
	})
}

// TestShapeFields: no field of a shape is forgotten in the comparison.
func TestShapeFields(t *testing.T) {
	base := shape{Disks: []diskShape{{Bytes: 512}}}
	if d := base.difference(base); d != "" {
		t.Errorf("it differs from itself: %s", d)
	}
	for i := range reflect.TypeFor[shape]().NumField() {
		other := base
		v := reflect.ValueOf(&other).Elem().Field(i)
		switch v.Kind() {
		case reflect.String:
			v.SetString("x")
		case reflect.Uint, reflect.Uint64:
			v.SetUint(1)
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		default:
			t.Fatalf("a field of kind %s", v.Kind())
		}
		if base.difference(other) == "" {
			t.Errorf("%s is not compared", reflect.TypeFor[shape]().Field(i).Name)
		}
	}
	for i := range reflect.TypeFor[diskShape]().NumField() {
		other := base
		other.Disks = []diskShape{{Bytes: 512}}
		v := reflect.ValueOf(&other.Disks[0]).Elem().Field(i)
		switch v.Kind() {
		case reflect.String:
			v.SetString("x")
		case reflect.Int64:
			v.SetInt(1)
		case reflect.Bool:
			v.SetBool(true)
		default:
			t.Fatalf("a field of kind %s", v.Kind())
		}
		if base.difference(other) == "" {
			t.Errorf("%s of a disk is not compared", reflect.TypeFor[diskShape]().Field(i).Name)
		}
	}
}

func TestOlderBuild(t *testing.T) {
	ordered := []string{"9A1", "23F79", "23F80", "23F100", "23G1", "24A5264n", "24A5279h", "24B1"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := olderBuild(a, b); got != (i < j) {
				t.Errorf("%s older than %s: %v", a, b, got)
			}
		}
	}
	if !olderBuild("", "24B1") || olderBuild("24B1", "") {
		t.Error("no build is the oldest")
	}
}
