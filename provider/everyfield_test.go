// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// everyField calls yield for each field below a type, each value of it that a rule knows and one
// that none does. set makes exactly that field not zero, and what it takes to reach it.
func everyField(t reflect.Type, depth int, yield func(path string, set func(root reflect.Value))) {
	f := fieldWalk{rules: rules(), yield: yield}
	f.walk(t, "", func(root reflect.Value) reflect.Value { return root }, depth)
}

type fieldWalk struct {
	rules map[string]rule
	yield func(path string, set func(root reflect.Value))
}

func (f fieldWalk) put(path string, reach func(reflect.Value) reflect.Value, value func(reflect.Type) reflect.Value) {
	f.yield(path, func(root reflect.Value) {
		v := reach(root)
		v.Set(value(v.Type()))
	})
}

func (f fieldWalk) walk(t reflect.Type, path string, reach func(reflect.Value) reflect.Value, depth int) {
	constant := func(v any) func(reflect.Type) reflect.Value {
		return func(t reflect.Type) reflect.Value { return reflect.ValueOf(v).Convert(t) }
	}
	switch t.Kind() { //nolint:exhaustive // the others do not occur
	case reflect.Pointer:
		fresh := func(t reflect.Type) reflect.Value { return reflect.New(t.Elem()) }
		f.put(path, reach, fresh)
		f.walk(t.Elem(), path, func(root reflect.Value) reflect.Value {
			v := reach(root)
			v.Set(fresh(v.Type()))
			return v.Elem()
		}, depth)
	case reflect.Struct:
		if depth == 0 {
			return
		}
		for field := range t.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if !field.IsExported() || name == "-" || name == "" && !field.Anonymous {
				continue
			}
			below, less := path, depth
			if name != "" {
				below, less = join(path, name), depth-1
			}
			f.walk(field.Type, below, func(root reflect.Value) reflect.Value { return reach(root).FieldByIndex(field.Index) }, less)
		}
	case reflect.Slice: // the second element, so that an index is seen
		two := func(t reflect.Type) reflect.Value { return reflect.MakeSlice(t, 2, 2) }
		f.put(path, reach, two)
		f.walk(t.Elem(), path+"[]", func(root reflect.Value) reflect.Value {
			v := reach(root)
			v.Set(two(v.Type()))
			return v.Index(1)
		}, depth)
	case reflect.Map:
		for _, key := range []string{"cpu", "other.example/thing"} {
			f.put(path, reach, func(t reflect.Type) reflect.Value {
				v := reflect.MakeMap(t)
				element := reflect.Zero(t.Elem())
				if t.Elem() == reflect.TypeFor[resource.Quantity]() {
					element = reflect.ValueOf(resource.MustParse("1"))
				}
				v.SetMapIndex(reflect.ValueOf(key).Convert(t.Key()), element)
				return v
			})
		}
	case reflect.Bool:
		f.put(path, reach, constant(true))
	case reflect.Int32, reflect.Int64:
		f.put(path, reach, constant(int64(1)))
	case reflect.String:
		for _, s := range append([]string{"x"}, f.rules[path].only...) {
			f.put(path, reach, constant(s))
		}
	}
}

func podMeta(annotation, value string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Annotations: map[string]string{annotation: value}}
}
