// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The limits of a property list. ioreg's answers are a few KiB and five levels deep.
const (
	maxPlistBytes  = maxOutput
	maxPlistDepth  = 32
	maxPlistValues = 50_000
)

// decodePlist reads an XML property list (plist(5)): dict, array, string, integer, true,
// false; what is in data, date and real is left out (nil). The values are
// map[string]any, []any, string, int64 and bool.
//
// It is written for what Apple's tools print and refuses everything else: other
// elements, values without a key, a key twice, text between values. encoding/xml expands
// no entity of the document's own and fetches nothing.
func decodePlist(b []byte) (any, error) {
	if len(b) >= maxPlistBytes {
		return nil, errors.New("property list is too long")
	}
	d := plistDecoder{xml: xml.NewDecoder(bytes.NewReader(b)), left: maxPlistValues}
	root, err := d.next()
	if err != nil {
		return nil, fmt.Errorf("read property list: %w", err)
	}
	if root == nil || root.Name.Local != "plist" {
		return nil, errors.New("read property list: it does not begin with plist")
	}
	v, err := d.one()
	if err != nil {
		return nil, fmt.Errorf("read property list: %w", err)
	}
	return v, nil
}

type plistDecoder struct {
	xml  *xml.Decoder
	left int // values that may still come
}

// next is the next element's start, or nil at the end of the one that is open.
func (d *plistDecoder) next() (*xml.StartElement, error) {
	for {
		token, err := d.xml.Token()
		if errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			return &t, nil
		case xml.EndElement:
			return nil, nil
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return nil, errors.New("text between values")
			}
		}
	}
}

// one is the single value in the plist element.
func (d *plistDecoder) one() (any, error) {
	e, err := d.next()
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, errors.New("it is empty")
	}
	v, err := d.value(e, 0)
	if err != nil {
		return nil, err
	}
	switch e, err := d.next(); {
	case err != nil:
		return nil, err
	case e != nil:
		return nil, errors.New("more than one value")
	}
	return v, nil
}

// value reads a value whose start was read.
func (d *plistDecoder) value(e *xml.StartElement, depth int) (any, error) {
	if d.left--; d.left < 0 || depth >= maxPlistDepth {
		return nil, errors.New("it is too large or too deep")
	}
	switch e.Name.Local {
	case "dict":
		return d.dict(depth)
	case "array":
		values := []any{}
		for {
			e, err := d.next()
			if err != nil || e == nil {
				return values, err
			}
			v, err := d.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			values = append(values, v)
		}
	case "string":
		return d.text()
	case "integer":
		s, err := d.text()
		if err != nil {
			return nil, err
		}
		// ioreg prints unsigned 64-bit numbers; those that do not fit are none that is
		// looked at.
		n, err := strconv.ParseInt(strings.TrimSpace(s), 0, 64)
		if errors.Is(err, strconv.ErrRange) {
			return nil, nil
		}
		return n, err
	case "true", "false":
		if s, err := d.text(); err != nil || strings.TrimSpace(s) != "" {
			return nil, errors.Join(fmt.Errorf("%s is not empty", e.Name.Local), err)
		}
		return e.Name.Local == "true", nil
	case "data", "date", "real":
		_, err := d.text()
		return nil, err
	default:
		return nil, fmt.Errorf("element %.32q", e.Name.Local)
	}
}

func (d *plistDecoder) dict(depth int) (any, error) {
	values := map[string]any{}
	for {
		e, err := d.next()
		if err != nil || e == nil {
			return values, err
		}
		if e.Name.Local != "key" {
			return nil, errors.New("value without a key")
		}
		key, err := d.text()
		if err != nil {
			return nil, err
		}
		if _, twice := values[key]; twice {
			return nil, fmt.Errorf("key %.64q twice", key)
		}
		if e, err = d.next(); err != nil {
			return nil, err
		}
		if e == nil {
			return nil, fmt.Errorf("key %.64q without a value", key)
		}
		if values[key], err = d.value(e, depth+1); err != nil {
			return nil, err
		}
	}
}

// text reads to the end of an element that has no elements in it.
func (d *plistDecoder) text() (string, error) {
	var b strings.Builder
	for {
		token, err := d.xml.Token()
		if errors.Is(err, io.EOF) {
			return "", io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", err
		}
		switch t := token.(type) {
		case xml.CharData:
			b.Write(t)
		case xml.StartElement:
			return "", fmt.Errorf("element %.32q in a text", t.Name.Local)
		case xml.EndElement:
			return b.String(), nil
		}
	}
}
