// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/vk-firkin/vk-firkin/vm"
)

type fakeMachine struct{ id string }

func TestRegistryClaim(t *testing.T) {
	r := NewRegistry[*fakeMachine](t.TempDir())
	release, err := r.Claim("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim("a"); !errors.Is(err, vm.ErrAlreadyExists) {
		t.Errorf("a second claim: %v, want %v", err, vm.ErrAlreadyExists)
	}
	if _, known, making := r.Lookup("a"); known || !making {
		t.Errorf("it is known %v, being made %v", known, making)
	}
	release()
	if _, err := r.Claim("a"); !errors.Is(err, vm.ErrAlreadyExists) {
		t.Errorf("with its directory there: %v, want %v", err, vm.ErrAlreadyExists)
	}
	if err := r.Remove("a", "/no/such/program"); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove("a", "/no/such/program"); err != nil {
		t.Errorf("remove again: %v", err)
	}
	if release, err = r.Claim("a"); err != nil {
		t.Errorf("after its removal: %v", err)
	} else {
		release()
	}
}

// A machine that is being made is waited for; what find returns is kept, with one watch.
func TestRegistryLoad(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry[*fakeMachine](root)
		finds, watches := 0, 0
		find := func() (*fakeMachine, func(), error) {
			finds++
			return &fakeMachine{"a"}, func() { watches++; <-r.Closing() }, nil
		}
		if _, err := r.Load(t.Context(), "a", find); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("of no machine: %v, want %v", err, vm.ErrNotFound)
		}
		if _, err := r.Load(t.Context(), "../a", find); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("of no id: %v, want %v", err, vm.ErrNotFound)
		}
		release, err := r.Claim("a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan error)
		load := func(ctx context.Context) {
			_, err := r.Load(ctx, "a", find)
			got <- err
		}
		go load(ctx)
		synctest.Wait()
		cancel()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while it waits: %v", err)
		}
		for range 3 {
			go load(t.Context())
		}
		synctest.Wait()
		if finds != 0 {
			t.Error("it was looked for while it was being made")
		}
		release()
		for range 3 {
			if err := <-got; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if finds != 1 || watches != 1 {
			t.Errorf("found %d times, watched %d times, want once", finds, watches)
		}
		m, known, _ := r.Lookup("a")
		if !known {
			t.Fatal("it is not known")
		}
		r.Forget("a", &fakeMachine{"a"}) // another one
		if _, known, _ := r.Lookup("a"); !known {
			t.Error("it was forgotten for another one")
		}
		r.Forget("a", m)
		if _, known, _ := r.Lookup("a"); known {
			t.Error("it is known still")
		}
		if left := r.Close(); len(left) != 0 {
			t.Errorf("closing returns %v", left)
		}
	})
}

func TestRegistryClosed(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry[*fakeMachine](root)
		release, err := r.Claim("b")
		if err != nil {
			t.Fatal(err)
		}
		ended := false
		if err := r.Add("b", &fakeMachine{"b"}, func() { <-r.Life().Done(); ended = true }); err != nil {
			t.Fatal(err)
		}
		release()
		if err := os.Mkdir(r.Dir("a"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.Dir("file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if ids, err := r.List(t.Context()); err != nil || !slices.Equal(ids, []string{"a", "b"}) {
			t.Errorf("list is %q, %v", ids, err)
		}
		for range 2 {
			if left := r.Close(); len(left) != 1 || left[0].id != "b" {
				t.Errorf("closing returns %v", left)
			}
		}
		if !ended {
			t.Error("closed while a watch runs")
		}
		_, claim := r.Claim("c")
		_, load := r.Load(t.Context(), "b", nil)
		_, list := r.List(t.Context())
		for _, err := range []error{claim, load, list, r.Add("c", nil, nil), r.Err()} {
			if !errors.Is(err, ErrClosed) || !errors.Is(err, vm.ErrUnavailable) {
				t.Errorf("error is %v, want %v", err, ErrClosed)
			}
		}
	})
}
