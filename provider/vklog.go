// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"log/slog"

	vklog "github.com/virtual-kubelet/virtual-kubelet/log"
)

// slogLogger is virtual-kubelet's logger onto slog. The one that comes with it panics
// on Error(err) and drops all arguments but the first.
type slogLogger struct{ log *slog.Logger }

var _ vklog.Logger = slogLogger{}

// Its levels are one lower than what they claim: what virtual-kubelet calls Info is
// of no use to an operator, and what it calls Error it repeats until it works.
func (l slogLogger) Debug(v ...any)            { l.print(slog.LevelDebug-4, v) }
func (l slogLogger) Debugf(f string, v ...any) { l.printf(slog.LevelDebug-4, f, v) }
func (l slogLogger) Info(v ...any)             { l.print(slog.LevelDebug, v) }
func (l slogLogger) Infof(f string, v ...any)  { l.printf(slog.LevelDebug, f, v) }
func (l slogLogger) Warn(v ...any)             { l.print(slog.LevelInfo, v) }
func (l slogLogger) Warnf(f string, v ...any)  { l.printf(slog.LevelInfo, f, v) }
func (l slogLogger) Error(v ...any)            { l.print(slog.LevelWarn, v) }
func (l slogLogger) Errorf(f string, v ...any) { l.printf(slog.LevelWarn, f, v) }

// Fatal logs and panics: ending the process is for main to decide.
func (l slogLogger) Fatal(v ...any) {
	l.print(slog.LevelError, v)
	panic(fmt.Sprint(v...))
}

// Fatalf logs and panics.
func (l slogLogger) Fatalf(f string, v ...any) {
	l.printf(slog.LevelError, f, v)
	panic(fmt.Sprintf(f, v...))
}

func (l slogLogger) WithField(key string, v any) vklog.Logger {
	return slogLogger{l.log.With(key, v)}
}

func (l slogLogger) WithFields(fields vklog.Fields) vklog.Logger {
	args := make([]any, 0, 2*len(fields))
	for k, v := range fields {
		args = append(args, k, v)
	}
	return slogLogger{l.log.With(args...)}
}

func (l slogLogger) WithError(err error) vklog.Logger { return slogLogger{l.log.With("err", err)} }

func (l slogLogger) print(level slog.Level, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, fmt.Sprint(v...))
	}
}

func (l slogLogger) printf(level slog.Level, f string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, fmt.Sprintf(f, v...))
	}
}
